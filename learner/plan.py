"""Which rank computes which rows when.

Micro-batches hold at most a budget of tokens, are even over the ranks, and there are as many on
each rank. Ranks run a step in lockstep under ZeRO-3, so a step lasts as long as its slowest rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeAlias

from learner.config import LearnerConfig
from learner.images import ImageKey
from learner.rows import Row
from learner.tree import tree_size

Steps: TypeAlias = list[list[list[int]]]
"""Of each step and rank the indices of the rows of its micro-batch; none if the rank has none."""


def plan_rows(
    rows: Sequence[Row],
    questions: Sequence[str],
    image_cost: Callable[[ImageKey], float],
    config: LearnerConfig,
) -> Steps:
    """Plan the micro-batches of a pass.

    In a tree the rows of a question stay together while they fit the budget. A row that is longer
    than the budget stands alone.

    Args:
        rows: of all ranks.
        questions: the question of each row.
        image_cost: of encoding an image, in tokens.
        config: its `ranks`, `micro_batch_tokens` (the budget) and `layout`.
    """
    ranks, budget = config.ranks, config.micro_batch_tokens
    lengths = [len(row.ids) for row in rows]
    if config.layout == "padded":
        return plan_padded(lengths, ranks, budget)
    if config.layout == "packed":
        units = [[i] for i in range(len(rows))]
        tokens = lengths
    else:
        units = _questions(rows, questions, budget)
        tokens = [tree_size([rows[i].keys for i in unit]) for unit in units]
    # What a unit costs beside its tokens: encoding its images, each once.
    costs = []
    for unit, unit_tokens in zip(units, tokens, strict=True):
        costs.append(unit_tokens + sum(map(image_cost, _images(rows, unit))))
    steps = plan_even(tokens, costs, ranks, budget)
    return [[_rows_of(units, members) for members in step] for step in steps]


def plan_even(tokens: Sequence[int], costs: Sequence[float], ranks: int, budget: int) -> Steps:
    """Put units into the fewest micro-steps, even in cost.

    Longest first, each to the micro-batch that has least so far (at most 4/3 of the best possible,
    Graham 1969).

    Args:
        tokens: of each unit.
        costs: of each unit, in tokens.
        ranks: micro-batches of a micro-step.
        budget: tokens of a micro-batch; a longer unit stands alone.

    Returns:
        Indices of units instead of rows.
    """
    # Equal costs in the order of the units, so that every rank makes the same plan.
    longest_first = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    least = _ceil(sum(min(t, budget) for t in tokens), budget * ranks)
    for steps in count(max(1, least)):
        slots = steps * ranks
        bins: list[list[int]] = [[] for _ in range(slots)]
        used = [0] * slots
        lightest = [(0.0, b) for b in range(slots)]  # a heap of (cost, micro-batch)
        for i in longest_first:
            cost, b = lightest[0]
            if bins[b] and used[b] + tokens[i] > budget:
                break  # one micro-step more
            bins[b].append(i)
            used[b] += tokens[i]
            heapq.heapreplace(lightest, (cost + costs[i], b))
        else:
            # Micro-batches of like cost share a step.
            bins = [bins[b] for _, b in sorted(lightest, reverse=True)]
            return _in_steps(bins, ranks)
    raise AssertionError("unreachable: with as many micro-batches as units every unit fits")


def plan_padded(lengths: Sequence[int], ranks: int, budget: int) -> Steps:
    """Put padded rows into the fewest micro-steps, then make the largest micro-batch smallest.

    Rows sorted by length are cut into consecutive micro-batches: neighbours in length waste the
    least padding.

    Args:
        lengths: tokens of each row.
        ranks: micro-batches of a micro-step.
        budget: padded tokens of a micro-batch; a longer row stands alone.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def pack(limit: int) -> list[list[int]]:
        bins: list[list[int]] = []
        for i in longest_first:
            # The first row of a micro-batch is its longest: all others are padded to it.
            if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= limit:
                bins[-1].append(i)
            else:
                bins.append([i])
        return bins

    slots = _ceil(len(pack(budget)), ranks) * ranks
    # The smallest limit that still takes no more micro-batches, by bisection.
    low, high = 0, budget
    while low < high:
        middle = (low + high) // 2
        if len(pack(middle)) <= slots:
            high = middle
        else:
            low = middle + 1
    bins = pack(low)
    # Every rank needs a micro-batch in every step, if only an empty one.
    bins += [[] for _ in range(slots - len(bins))]
    return _in_steps(bins, ranks)


def _ceil(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def _questions(rows: Sequence[Row], questions: Sequence[str], budget: int) -> list[list[int]]:
    """Return the rows of each question, in several parts if their tree exceeds the budget."""
    by_question: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        by_question.setdefault(question, []).append(i)
    units: list[list[int]] = []
    for members in by_question.values():
        if tree_size([rows[i].keys for i in members]) <= budget:
            units.append(members)
        else:
            units += _split(rows, members, budget)
    return units


def _split(rows: Sequence[Row], members: Sequence[int], budget: int) -> list[list[int]]:
    """Cut the rows of one question into parts whose trees fit the budget."""
    parts: list[list[int]] = [[]]
    # Neighbours in this order share the longest prefixes.
    for i in sorted(members, key=lambda i: rows[i].keys.tolist()):
        part = parts[-1]
        if part and tree_size([rows[j].keys for j in [*part, i]]) > budget:
            parts.append([i])
        else:
            part.append(i)
    return parts


def _images(rows: Sequence[Row], unit: Sequence[int]) -> list[ImageKey]:
    """Return the distinct images of some rows, in the same order on every rank.

    A set would not do: its order differs between processes, and with it the rounding of a sum.
    """
    shown: dict[ImageKey, None] = {}
    for i in unit:
        shown.update(dict.fromkeys(rows[i].images))
    return list(shown)


def _rows_of(units: Sequence[Sequence[int]], members: Sequence[int]) -> list[int]:
    out: list[int] = []
    for unit in members:
        out += units[unit]
    return out


def _in_steps(bins: Sequence[list[int]], ranks: int) -> Steps:
    return [list(bins[s : s + ranks]) for s in range(0, len(bins), ranks)]
