"""FlexAttention's mask and its compiled graphs. Dynamo and its guards are real here; the kernels,
which a CPU has only for the forward pass, are replaced by torch's eager operations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex
from torch.utils.checkpoint import checkpoint
from transformers.integrations import flex_attention as wrapper

from learner import attention
from learner.tree import BLOCK, Tree, lay_out

FIELDS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
LENGTHS = (3, 60, 90, 128, 129, 260, 300, 384, 500, 640, 700, 786)
HEADS, KEY_HEADS, DIM = 4, 2, 32


def tree_of(length: int, branches: int = 4) -> Tree:
    """Return a tree of about `length` tokens: a prompt with branches."""
    rng = np.random.default_rng(length)
    prompt = rng.integers(0, 1000, length // 3)
    each = max(1, (length - len(prompt)) // branches)
    rows = [np.concatenate([prompt, rng.integers(1000, 9999, each)]) for _ in range(branches)]
    return lay_out(rows, share=True).tree


def random_tree(seed: int) -> Tree:
    """Return a tree whose branchings lie anywhere in its blocks; some rows are empty."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 3, int(rng.integers(1, 500)))
    rows = []
    for _ in range(int(rng.integers(1, 10))):
        shared = prompt[: rng.integers(0, len(prompt) + 1)]
        rows.append(np.concatenate([shared, rng.integers(0, 3, int(rng.integers(0, 300)))]))
    return lay_out([*rows, prompt], share=seed % 4 > 0).tree


@pytest.mark.parametrize("seed", range(12))
def test_the_blocks_are_those_of_the_dense_rule(seed: int) -> None:
    tree = random_tree(seed)
    size = len(tree.ends)
    index, ends = torch.arange(size), torch.from_numpy(tree.ends)
    allowed = (index[None] <= index[:, None]) & (index[:, None] < ends[None])
    mask = tree.block_mask("cpu")
    assert mask.seq_lengths == (size, size)
    covered = torch.zeros(size, size, dtype=torch.bool)
    for number, block in enumerate(range(0, size, BLOCK)):
        queries = slice(block, block + BLOCK)
        partly, fully = numbers(mask, "kv", number), numbers(mask, "full_kv", number)
        assert partly == sorted(partly)
        assert not set(partly) & set(fully)
        for chosen in fully:
            keys = slice(chosen * BLOCK, (chosen + 1) * BLOCK)
            assert allowed[queries, keys].all()
            assert allowed[queries, keys].numel() == BLOCK * BLOCK
        for chosen in (*partly, *fully):
            keys = slice(chosen * BLOCK, (chosen + 1) * BLOCK)
            assert allowed[queries, keys].any()
            covered[queries, keys] = True
    assert not (allowed & ~covered).any()


def numbers(mask: Any, kind: str, row: int) -> list[int]:
    """Return the blocks of keys that a row of blocks names."""
    count = int(getattr(mask, f"{kind}_num_blocks")[0, 0, row])
    return getattr(mask, f"{kind}_indices")[0, 0, row, :count].tolist()


@pytest.mark.parametrize("length", [1, 127, 128, 129, 700])
def test_the_mask_is_the_one_that_torch_makes_of_the_dense_rule(length: int) -> None:
    tree = tree_of(length, branches=1 + length % 3)
    found = tree.block_mask("cpu")
    size = len(tree.ends)
    expected = flex.create_block_mask(found.mask_mod, None, None, size, size, device="cpu")
    for name in (*FIELDS, *(field.replace("kv", "q") for field in FIELDS)):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_a_mask_of_32768_tokens_takes_little_memory() -> None:
    tree = tree_of(32_768)
    tree.block_mask("cpu")  # what torch imports and keeps does not count
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    mask = tree.block_mask("cpu")
    assert memory("VmHWM") - before < 16 << 20
    kept = sum(t.nbytes for t in mask.as_tuple() if isinstance(t, Tensor))
    assert kept < 4 << 20


def memory(name: str) -> int:
    """Return a line of this process's memory status, in bytes."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) << 10


@dataclass
class Compiled:
    """FlexAttention as the learner calls it, and how often it was compiled."""

    counter: Any

    def __call__(self, given: list[Tensor], mask: Any, *, training: bool = True) -> Tensor:
        module = torch.nn.Module().train(training)
        out, _ = attention.tree_attention(
            module, *given, None, scaling=0.2, tree=Tree(np.ones(1)), block_mask=mask
        )
        return out


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    counter = CompileCounterWithBackend("eager")
    compile_function = torch.compile
    monkeypatch.setattr(
        wrapper.torch, "compile", lambda function: compile_function(function, backend=counter)
    )
    # On a CPU torch refuses the gradient, whose operations are the same here.
    monkeypatch.setattr(flex, "_validate_device", lambda *given: None)
    monkeypatch.setattr(wrapper.WrappedFlexAttention, "_is_flex_compiled", False)
    monkeypatch.setattr(wrapper.WrappedFlexAttention, "_instance", None)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield Compiled(counter)
    torch._dynamo.reset()


def inputs(size: int) -> list[Tensor]:
    torch.manual_seed(size)
    shapes = [(1, heads, size, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def test_twelve_lengths_compile_few_graphs_and_equal_attention_node_by_node(
    compiled: Compiled,
) -> None:
    attention.limit_graphs()
    for length in LENGTHS:
        tree = tree_of(length)
        mask = tree.block_mask("cpu")
        size = len(tree.ends)
        # The pass of the reference, then that of the policy, computed again in the backward pass.
        with torch.no_grad():
            reference = compiled(inputs(size), mask, training=False)
        found, right = inputs(size), inputs(size)
        out = checkpoint(compiled, found, mask, use_reentrant=False)
        expected, _ = attention.tree_attention(None, *right, None, scaling=0.2, tree=tree)
        up = torch.randn_like(out)
        (out * up).sum().backward()
        (expected * up).sum().backward()
        torch.testing.assert_close(reference, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=5e-5)
    assert compiled.counter.frame_count <= 6


def test_too_many_graphs_are_an_error(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GRAPHS", 1)
    attention.limit_graphs()
    short, long = tree_of(200), tree_of(400)
    compiled(inputs(len(short.ends)), short.block_mask("cpu"))
    with pytest.raises(FailOnRecompileLimitHit):
        compiled(inputs(len(long.ends)), long.block_mask("cpu"))
