"""Long nodes of a tree: two parts merged give what one masked call gives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learner import attention, merged
from learner.merged import attend_below
from learner.tree import lay_out

PREFIX, NODE, HEADS, SIZE = 70, 300, 4, 32


def tensors(dtype: torch.dtype, queries: int, keys: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, HEADS, tokens, SIZE) for tokens in (queries, keys, keys)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def masked(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    above = key.shape[2] - query.shape[2]
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(above)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def worst(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())


def test_torch_has_the_operators_that_we_know() -> None:
    assert merged.AVAILABLE


def test_an_operator_that_changed_or_is_gone_is_not_taken() -> None:
    assert merged._operator(merged.KNOWN[0].replace("query", "q")) is None
    assert merged._operator("aten::_no_such_attention(Tensor query) -> Tensor") is None


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 2e-2)],
)
def test_output_and_gradients_are_those_of_the_masked_call(
    dtype: torch.dtype, limit: float, scale: float | None
) -> None:
    inputs = tensors(dtype, NODE, PREFIX + NODE)
    grad = torch.randn(1, HEADS, NODE, SIZE).to(dtype)
    out = attend_below(*inputs, scale)
    assert out.dtype == dtype
    found = torch.autograd.grad(out, inputs, grad)
    # The masked call of the same numbers, in float64.
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected_out = masked(*exact, scale)
    expected = torch.autograd.grad(expected_out, exact, grad.double())
    assert worst(out, expected_out) < limit
    for gradient, of_masked in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        assert worst(gradient, of_masked) < limit


def test_bfloat16_is_as_close_as_the_masked_call_in_bfloat16() -> None:
    inputs = tensors(torch.bfloat16, NODE, PREFIX + NODE)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    grad = torch.randn(1, HEADS, NODE, SIZE)
    expected_out = masked(*exact, None)
    expected = torch.autograd.grad(expected_out, exact, grad.double())
    errors = {}
    for attend in (attend_below, masked):
        out = attend(*inputs, None)
        found = torch.autograd.grad(out, inputs, grad.bfloat16())
        pairs = zip([out, *found], [expected_out, *expected], strict=True)
        errors[attend] = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    for ours, theirs in zip(errors[attend_below], errors[masked], strict=True):
        assert ours < 1.3 * theirs


@pytest.mark.parametrize("available", [True, False])
def test_a_tree_with_long_nodes_gives_what_each_row_gives_by_itself(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "AVAILABLE", available)
    # Three rows: two long ones behind 60 common tokens, and a short one that leaves after 40.
    common = np.arange(60)
    rows = [
        np.concatenate([common, 1000 + np.arange(attention.LONG)]),
        np.concatenate([common, 2000 + np.arange(attention.LONG + 44)]),
        np.concatenate([common[:40], 3000 + np.arange(20)]),
    ]
    laid = lay_out(rows, share=True)
    size = len(laid.tree.ends)
    torch.manual_seed(1)
    # Four query heads share two key heads.
    query = torch.randn(1, 4, size, SIZE, requires_grad=True)
    key, value = (torch.randn(1, 2, size, SIZE, requires_grad=True) for _ in range(2))
    weights = torch.randn(size, 4, SIZE)

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, (query, key, value)))

    out, _ = attention.tree_attention(None, query, key, value, None, tree=laid.tree)
    whole = sum(((out[0, index] * weights[index]).sum() for index in laid.index), torch.zeros(()))
    alone = torch.zeros(())
    for index in laid.index:
        of_row = [tensor[:, :, index] for tensor in (query, key, value)]
        row = F.scaled_dot_product_attention(*of_row, is_causal=True, enable_gqa=True)
        assert worst(out[0, index], row[0].transpose(0, 1)) < 3e-6
        alone = alone + (row[0].transpose(0, 1) * weights[index]).sum()
    for found, expected in zip(gradients(whole), gradients(alone), strict=True):
        assert worst(found, expected) < 3e-6
