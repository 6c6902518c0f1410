"""Rows on one axis: prefixes once, attention to the prefix alone."""

import numpy as np
import pytest
import torch

from learner.attention import tree_attention
from learner.tree import Tree, lay_out, tree_size

ROWS = [np.array(r) for r in ([1, 2, 3, 4], [1, 2, 5], [1, 2, 3], [7, 8], [1, 2, 3, 9, 9])]


def random_rows(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, rng.integers(1, 12)) for _ in range(9)]


def test_a_prefix_tree_by_hand():
    laid = lay_out(ROWS, share=True)
    tree = laid.tree
    #                 1  2  3  4  9  9  5  7  8
    assert tree.ends.tolist() == [7, 7, 6, 4, 6, 6, 7, 9, 9]
    assert [i.tolist() for i in laid.index] == [
        [0, 1, 2, 3],
        [0, 1, 6],
        [0, 1, 2],
        [7, 8],
        [0, 1, 2, 4, 5],
    ]
    assert laid.pieces == [(2, 0), (0, 3), (4, 3), (1, 2), (3, 0)]
    assert tree.spans == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 9)]
    assert tree.paths == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 4], [5]]
    assert tree_size(ROWS) == 9


def test_packed_rows_share_nothing():
    laid = lay_out(ROWS, share=False)
    tree = laid.tree
    assert tree.ends.tolist() == [4] * 4 + [7] * 3 + [10] * 3 + [12] * 2 + [17] * 5
    assert tree.paths == [[0], [1], [2], [3], [4]]
    assert laid.index[3].tolist() == [10, 11]
    assert laid.pieces == [(i, 0) for i in range(5)]


@pytest.mark.parametrize("seed", range(5))
def test_a_token_attends_to_its_row_up_to_itself_and_to_nothing_else(seed):
    rows = random_rows(seed)
    laid = lay_out(rows, share=True)
    tree, index = laid.tree, laid.index
    k = np.arange(len(tree.ends))
    allowed = (k[None] <= k[:, None]) & (k[:, None] < tree.ends[None])  # [q, k]
    flat = np.concatenate([rows[i][first:] for i, first in laid.pieces])
    assert len({tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}) == len(
        flat
    )  # every prefix once
    for row, at in zip(rows, index, strict=True):
        assert flat[at].tolist() == row.tolist()
        for n, q in enumerate(at):
            assert np.flatnonzero(allowed[q]).tolist() == at[: n + 1].tolist()
    for (start, stop), path in zip(tree.spans, tree.paths, strict=True):
        above = np.concatenate([np.arange(*tree.spans[i]) for i in path[:-1]] or [np.zeros(0, int)])
        assert np.flatnonzero(allowed[stop - 1]).tolist() == [*above, *range(start, stop)]


def attend(tree: Tree, q, k, v, **kwargs):
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    module.is_causal = True
    return tree_attention(module, q, k, v, None, scaling=0.3, tree=tree, **kwargs)[0]


def test_attention_node_by_node_equals_the_dense_mask_forward_and_backward():
    tree = lay_out(random_rows(1), share=True).tree
    torch.manual_seed(0)
    T = len(tree.ends)
    q, k, v = (
        torch.randn(1, heads, T, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    index, ends = torch.arange(T), torch.from_numpy(tree.ends)
    mask = (index[None] <= index[:, None]) & (index[:, None] < ends[None])
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    dense = (q @ keys.transpose(-1, -2) * 0.3).masked_fill(~mask, float("-inf")).softmax(
        -1
    ) @ values
    dense = dense.transpose(1, 2)
    out = attend(tree, q, k, v)
    weights = torch.randn_like(dense)
    for a, b in zip(
        torch.autograd.grad((out * weights).sum(), (q, k, v)),
        torch.autograd.grad((dense * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(out, dense)


def test_the_mask_for_flex_attention_is_the_same():
    from torch.nn.attention.flex_attention import create_mask

    tree = lay_out(random_rows(2), share=True).tree
    block_mask = tree.block_mask("cpu")
    T = len(tree.ends)
    index, ends = np.arange(T), tree.ends
    expected = (index[None] <= index[:, None]) & (index[:, None] < ends[None])
    assert (
        create_mask(block_mask.mask_mod, 1, 1, T, T, device="cpu")[0, 0].tolist()
        == expected.tolist()
    )


@pytest.mark.engine
@pytest.mark.slow
def test_flex_attention_computes_the_same():
    # Compiled for CPU, where it has no backward pass; on a GPU this is the learner's attention.
    prompt = np.arange(150) + 1000
    tree = lay_out([np.concatenate([prompt, row]) for row in random_rows(3)], share=True).tree
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(tree.ends), 32) for heads in (4, 2, 2))
    with torch.no_grad():
        torch.testing.assert_close(
            attend(tree, q, k, v, block_mask=tree.block_mask("cpu")),
            attend(tree, q, k, v),
            rtol=0,
            atol=1e-5,
        )
