"""Tier 1, kernels: FlexAttention over trees, the head, NCCL, and memory shared by processes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner import attention
from learner.head import Head
from learner.tree import Tree, lay_out
from tests.gpu.device import CUDA, DEVICE, timed, with_peak
from tests.gpu.figures import Figures
from tests.gpu.model import TEXT, VOCABULARY

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
LENGTHS = (3, 90, 300, 1000, 1024, 2500, 4096, 6000, 9001, 16_384, 24_000, 32_768)
HEADS, KEY_HEADS, WIDTH = (16, 8, 128) if CUDA else (4, 2, 32)


def tree_of(total: int, branches: int = 8) -> Tree:
    """Return a tree of about `total` tokens: a prompt of a quarter, and branches."""
    rng = np.random.default_rng(total)
    prompt = rng.integers(0, 1000, total // 4)
    each = max(1, (total - len(prompt)) // branches)
    rows = [np.concatenate([prompt, rng.integers(1000, 9999, each)]) for _ in range(branches)]
    return lay_out(rows, share=True).tree


def inputs(size: int) -> list[Tensor]:
    dtype = torch.bfloat16 if CUDA else torch.float32
    out = []
    for seed, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS)):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        shape = (1, heads, size, WIDTH)
        made = torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)
        out.append(made.requires_grad_())
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, tree: Tree, mask: Any) -> Tensor:
    module = nn.Module()
    out, _ = attention.tree_attention(
        module, query, key, value, None, scaling=WIDTH**-0.5, tree=tree, block_mask=mask
    )
    return out


def apart(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


def test_flex_attention_equals_attention_node_by_node_up_to_32768_tokens(figures: Figures) -> None:
    attention.limit_graphs()
    for length in LENGTHS if CUDA else LENGTHS[:3]:
        tree = tree_of(length)
        size = len(tree.ends)
        mask, mask_gib = with_peak(lambda: tree.block_mask(DEVICE))  # noqa: B023  (called at once)
        assert mask_gib <= 64 / 1024
        # On a CPU FlexAttention has no backward pass: the dry run compares a thing with itself.
        used = mask if CUDA else None
        found, right = inputs(size), [given.detach().float() for given in inputs(size)]
        for given in right:
            given.requires_grad_()
        expected = attend(*right, tree, None)
        up = torch.randn_like(expected)
        (expected * up).sum().backward()

        def both_ways() -> Tensor:
            out = checkpoint(attend, *found, tree, used, use_reentrant=False)  # noqa: B023
            (out.float() * up).sum().backward()  # noqa: B023
            return out

        out, compiling = timed(both_ways)
        assert apart(out.detach(), expected.detach()) <= 1e-2
        for one, other in zip(found, right, strict=True):
            assert apart(one.grad, other.grad) <= 2e-2
        for given in found:
            given.grad = None
        (_, seconds), gib = with_peak(lambda: timed(both_ways))
        figures.add(
            f"flex_attention_{length}",
            tokens=size,
            tokens_per_s=size / seconds,
            first_call_s=compiling,
            attention_gib=gib,
            mask_mib=1024 * mask_gib,
        )


def test_the_head_at_the_real_vocabulary_is_exact_and_holds_one_chunk(figures: Figures) -> None:
    tokens, width = (20_000, TEXT["hidden_size"]) if CUDA else (300, 64)
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(VOCABULARY, width, device=DEVICE)
    hidden = torch.randn(tokens, width, device=DEVICE)
    targets = torch.randint(0, VOCABULARY, (tokens,), device=DEVICE)
    gradients, outputs = [], []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = nn.Parameter(weight.to(torch.bfloat16).to(dtype))
        given = hidden.to(torch.bfloat16).to(dtype)

        def both_ways() -> Tensor:
            logprobs, _ = Head(parameter, [1], 1.0)(given, targets)  # noqa: B023
            logprobs.mean().backward()
            return logprobs

        (out, seconds), gib = with_peak(lambda: timed(both_ways))
        assert parameter.grad is not None
        outputs.append(out.detach())
        gradients.append(parameter.grad.float())
        name = str(dtype).removeprefix("torch.")
        figures.add(f"head_{name}", tokens_per_s=tokens / seconds, gib=gib)
    assert (outputs[1] - outputs[0]).abs().max() < 1e-2
    assert apart(gradients[1], gradients[0]) < 5e-3


def child(handles: Any, answers: Any) -> None:
    """Read a tensor of the parent, answer with its sum, and write into it."""
    shared = handles.get(timeout=120)
    answers.put(float(shared.sum()))
    shared.fill_(7.0)
    if CUDA:
        torch.cuda.synchronize()
    answers.put(None)
    handles.get(timeout=120)  # the memory is the parent's: it ends last


def test_two_processes_share_memory_of_the_device_by_a_handle() -> None:
    context = torch.multiprocessing.get_context("spawn")
    handles, answers = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(handles, answers), daemon=True)
    process.start()
    try:
        tensor = torch.arange(1000.0, device=DEVICE)
        handles.put(tensor)
        assert answers.get(timeout=240) == 999 * 500
        assert answers.get(timeout=120) is None
        assert tensor.eq(7.0).all()
        handles.put(None)
        process.join(60)
    finally:
        process.kill()


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_the_parts_that_set_up_tries_work() -> None:
    for command in (["check_triton.py"], ["check_gpu.py", "flex"], ["check_gpu.py", "nccl"]):
        done = subprocess.run(
            [sys.executable, f"deploy/{command[0]}", *command[1:]],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
