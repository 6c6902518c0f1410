"""Sequences laid out as one flat token axis, each shared prefix once.

Rows are sorted, so every row repeats the longest prefix that it shares with any earlier row from
the row just before it, and only the rest is laid down. This is the prefix tree (trie) of the rows
in depth-first order. In that order a token's descendants follow it without a gap, so one number a
token, the end of its subtree, says all about attention:

    q attends to k  iff  k <= q < ends[k]

Sequences packed side by side are the same with nothing shared. A token's hidden state depends on
its prefix alone, so what every row reads off the tree is what it would compute by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

Ints = NDArray[np.int64]


BLOCK = 128
"""Queries, and keys, of a block of FlexAttention's mask; torch's own default."""


@dataclass(frozen=True)
class Tree:
    """Attention over T flat tokens."""

    ends: Ints  # [T] where the token's subtree ends, exclusive

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """[start, stop) of the tree's nodes: runs of tokens between two branchings.

        They cut [0, T) without a gap.
        """
        cuts = [0, *(np.flatnonzero(np.diff(self.ends)) + 1).tolist(), len(self.ends)]
        return list(itertools.pairwise(cuts))

    @cached_property
    def paths(self) -> list[list[int]]:
        """For each node the nodes on the way from its root, itself last."""
        out: list[list[int]] = []
        path: list[int] = []
        for node, (start, _) in enumerate(self.spans):
            # Leave the subtrees that ended before this node.
            while path and self.ends[self.spans[path[-1]][0]] <= start:
                path.pop()
            path.append(node)
            out.append(path.copy())
        return out

    def block_mask(self, device: str | torch.device) -> BlockMask:
        """Return the mask for FlexAttention, which skips the blocks with nothing to attend to.

        It is built from `ends`, a block at a time: torch's `create_block_mask` fills a mask of
        [T, T], which takes 8 GiB at 32,768 tokens.
        """
        import torch
        from torch.nn.attention.flex_attention import BlockMask

        ends = torch.from_numpy(self.ends).to(device)

        def attends(batch: Any, head: Any, q: Any, k: Any) -> Any:
            return (k <= q) & (q < ends[k])

        some, every = self._blocks()
        partly_counts, partly = _by_row(some & ~every)
        fully_counts, fully = _by_row(every)
        counted = (partly_counts, partly, fully_counts, fully)
        on_device = (torch.from_numpy(array).to(device) for array in counted)
        size = len(self.ends)
        return BlockMask.from_kv_blocks(
            *on_device, BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(size, size)
        )

    def _blocks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return for each block of queries and each of keys: does some pair attend, does every.

        Both have the shape [T / BLOCK, T / BLOCK], rounded up.
        """
        starts = np.arange(0, len(self.ends), BLOCK)
        latest = np.maximum.reduceat(self.ends, starts)
        earliest = np.minimum.reduceat(self.ends, starts)
        first_query = starts[:, None]
        earlier = starts[None] < first_query
        # Of an earlier block of keys, the first query sees most and the last one sees least. In its
        # own block every query sees itself, and none sees a later one.
        some = (earlier & (latest[None] > first_query)) | np.eye(len(starts), dtype=bool)
        every = earlier & (earliest[None] >= first_query + BLOCK)
        return some, every


@dataclass(frozen=True)
class Laid:
    """Rows on a flat axis of T tokens."""

    tree: Tree
    index: list[Ints]
    """For each row the flat position of each of its tokens, shape [L_i]."""
    pieces: list[tuple[int, int]]
    """(row, first token): the flat axis is the concatenation of `rows[row][first:]` of these."""


def lay_out(rows: Sequence[Ints], *, share: bool) -> Laid:
    """Lay rows on one flat axis.

    Args:
        rows: keys of each row's tokens, shape [L_i]; equal where tokens or images are equal.
        share: lay each shared prefix once; False: pack the rows side by side.
    """
    order = list(range(len(rows)))
    if share:
        order.sort(key=lambda i: _sortable(rows[i]))
    index: list[Ints] = [np.zeros(0, np.int64)] * len(rows)
    pieces: list[tuple[int, int]] = []
    ends = np.zeros(sum(map(len, rows)), np.int64)
    total = 0
    before = np.zeros(0, np.int64)  # keys of the row just laid down
    path = np.zeros(0, np.int64)  # and its flat positions
    for i in order:
        shared = _common(before, rows[i]) if share else 0
        # What the row before did not share with this one has no more descendants.
        ends[path[shared:]] = total
        if shared < len(rows[i]):
            pieces.append((i, shared))
        before = rows[i]
        path = np.concatenate([path[:shared], np.arange(total, total + len(before) - shared)])
        index[i] = path
        total += len(before) - shared
    ends[path] = total
    return Laid(Tree(ends[:total]), index, pieces)


def tree_size(rows: Sequence[Ints]) -> int:
    """Return the tokens of the tree of `rows`."""
    ordered = sorted(rows, key=_sortable)
    shared = sum(_common(a, b) for a, b in itertools.pairwise(ordered))
    return sum(map(len, rows)) - shared


def _by_row(chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return how many blocks of keys each row has, and their numbers, in BlockMask's form.

    The numbers of a row come first and in order; those after them mean nothing. The shapes are
    [1, 1, rows] and [1, 1, rows, blocks].
    """
    counts = chosen.sum(-1, dtype=np.int32)
    numbers = np.argsort(~chosen, axis=-1, kind="stable").astype(np.int32)
    return counts[None, None], numbers[None, None]


def _sortable(keys: Ints) -> bytes:
    """Return bytes that group equal prefixes; their order does not matter to the tree."""
    return keys.astype(">u8").tobytes()


def _common(a: Ints, b: Ints) -> int:
    """Return the length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
