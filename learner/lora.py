"""Low-rank adapters (peft) under ZeRO-3, and the whole weights that leave the learner.

Only the adapters train. Engines and exports receive W + scaling * B A under the base model's own
names, so neither the engine nor a reader of a checkpoint knows about adapters. With `sync:
adapters` the engines get the factors instead, and add them to their own base. With the adapters
switched off the policy is the reference policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import LoraSettings

ADAPTER = "default"  # peft's own name
_BASE = ".base_layer.weight"
_PEFT = "base_model.model"  # what peft puts before the names of a model's layers


@dataclass(frozen=True)
class Adapter:
    """The two factors on one weight."""

    a: nn.Parameter  # [rank, in]
    b: nn.Parameter  # [out, rank]
    scaling: float


def inject(model: nn.Module, settings: LoraSettings) -> None:
    """Put adapters on the language model's layers named in `settings.targets`; freeze all else.

    Raises:
        ValueError: a target names no layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    missing = set(settings.targets) - names
    if missing:
        raise ValueError(
            f"learner.lora.targets: the model has no layers named {sorted(missing)}; "
            f"it has {sorted(names)}"
        )
    pattern = rf".*language_model.*\.({'|'.join(settings.targets)})"
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=pattern)
    inject_adapter_in_model(config, model, ADAPTER)


def exported(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the base model's parameters with their Hugging Face names."""
    for name, parameter in model.named_parameters():
        if ".lora_A." not in name and ".lora_B." not in name:
            yield name.replace(".base_layer.", "."), parameter


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapter on each weight that has one, by the weight's Hugging Face name."""
    parameters = dict(model.named_parameters())
    out = {}
    for name in parameters:
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            a = parameters[f"{layer}.lora_A.{ADAPTER}.weight"]
            b = parameters[f"{layer}.lora_B.{ADAPTER}.weight"]
            scaling: dict[str, float] = model.get_submodule(layer).scaling
            out[f"{layer}.weight"] = Adapter(a, b, scaling[ADAPTER])
    return out


def merged(weight: Tensor, adapter: Adapter | None) -> Tensor:
    """Return W + scaling * B A, computed in float32, as W's dtype.

    Without an adapter it is W itself. ZeRO-3 must have gathered all of them.
    """
    if adapter is None:
        return weight
    # In bfloat16 a small change to a large weight would be rounded away.
    change = adapter.b.data.float() @ adapter.a.data.float()
    return (weight.float() + adapter.scaling * change).to(weight.dtype)


def payload(model: nn.Module, settings: LoraSettings) -> dict[str, Any]:
    """Return the adapters as peft's two files. Collective: ZeRO-3 gathers the factors.

    Returns:
        `config`, the fields of adapter_config.json, and `tensors`, adapter_model.safetensors.
    """
    import deepspeed
    from safetensors.torch import save

    factors = {}
    for weight, adapter in adapters(model).items():
        layer = weight.removesuffix(".weight")
        factors[f"{_PEFT}.{layer}.lora_A.weight"] = adapter.a
        factors[f"{_PEFT}.{layer}.lora_B.weight"] = adapter.b
    with deepspeed.zero.GatheredParameters(list(factors.values())):
        whole = {name: factor.detach().cpu().clone() for name, factor in factors.items()}
    config = {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets),
        "bias": "none",
    }
    return {"config": config, "tensors": save(whole)}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Make the model compute what its base does, without a gradient, inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # Not peft's enable_adapters: that turns requires_grad off and on again, on which ZeRO-3's
    # hooks depend.
    for layer in layers:
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
