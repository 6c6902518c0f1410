"""Buffers with the digits that a float32 build of the same config gives them.

A buffer is what a model computes from its config and does not train, such as the frequencies of its
rotary positions. Inside `deepspeed.zero.Init` every new floating tensor gets the type of the
weights, so in bfloat16 a frequency is 0.4 % off. At position 16,384 that is a phase of radians, and
the gap to float32 grows with the length: KL 1.2e-3 at 3,000 tokens, and 1.7e-4 with exact buffers.
DeepSpeed keeps the type of buffers, but cannot bring lost digits back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def restore(model: Any) -> None:
    """Give every buffer of a model its float32 value.

    Args:
        model: of transformers, built inside `zero.Init`; call this outside.

    Raises:
        ValueError: the float32 build has other buffers; one is named.
    """
    expected = float32_buffers(model)
    for name, buffer in _buffers(model, expected):
        buffer.data = expected[name].to(buffer.device)


def check(model: Any) -> None:
    """Compare every buffer of a model with a float32 build, bit for bit.

    Raises:
        ValueError: one has another type or value, or the build has other buffers; it is named.
    """
    expected = float32_buffers(model)
    for name, buffer in _buffers(model, expected):
        right = expected[name]
        if buffer.dtype != right.dtype or not torch.equal(buffer.cpu(), right):
            raise ValueError(
                f"buffer {name} of the learner's model is {buffer.dtype} and off by up to "
                f"{_largest(buffer, right):.2g}; expected the {right.dtype} of a float32 build of "
                "its config, to the bit"
            )


def float32_buffers(model: Any) -> dict[str, Tensor]:
    """Return the buffers of a float32 build of a model's config, by name, on the CPU.

    The build holds no weights, and random generators stay as they are.
    """
    from transformers.initialization import no_init_weights

    # A copy: the build writes its type into its config.
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]), no_init_weights(), _parameters_on_meta():
        build = type(model)._from_config(config, dtype=torch.float32)
    return dict(build.named_buffers())


def _buffers(model: nn.Module, expected: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the buffers of a model with their names, which must be those of `expected`."""
    found = list(model.named_buffers())
    different = {name for name, _ in found} ^ set(expected)
    if different:
        raise ValueError(
            f"buffer {min(different)} is not both in the learner's model and in a float32 build "
            "of its config; expected the same buffers in both"
        )
    return found


def _largest(buffer: Tensor, right: Tensor) -> float:
    if buffer.shape != right.shape:
        return float("inf")
    return float((buffer.cpu().double() - right.double()).abs().max())


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Make modules built inside the block keep no memory for their parameters."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
