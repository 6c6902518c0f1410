"""Which rank computes which rows when: micro-batches of a token budget, even over the ranks, the same number on each.

Ranks run a step in lockstep under ZeRO-3, so a step lasts as long as its slowest rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from learner.batch import ImageKey, Row
from learner.config import LearnerConfig
from learner.tree import tree_size

Steps = list[list[list[int]]]
"""[steps][ranks] -> indices of the rows of that micro-batch; [] where a rank has none."""


def plan_rows(
    rows: Sequence[Row],
    questions: Sequence[str],
    image_cost: Callable[[ImageKey], float],
    config: LearnerConfig,
) -> Steps:
    """`questions`: the question of each row; `image_cost`: of encoding an image, in tokens. `budget`: tokens of one micro-batch.

    In a tree the rows of a question stay together while they fit the budget; a longer row stands alone.
    """
    ranks, budget, layout = config.ranks, config.micro_batch_tokens, config.layout
    lengths = [len(row.ids) for row in rows]
    if layout == "padded":
        return plan_padded(lengths, ranks, budget)
    if layout == "packed":
        units = [[i] for i in range(len(rows))]
        tokens = lengths
    else:
        units = _questions(rows, questions, budget)
        tokens = [tree_size([rows[i].keys for i in unit]) for unit in units]
    shown = [{key for i in unit for key in rows[i].images} for unit in units]
    costs = [t + sum(map(image_cost, keys)) for t, keys in zip(tokens, shown, strict=True)]
    return [
        [[i for u in bin_ for i in units[u]] for bin_ in step]
        for step in plan_even(tokens, costs, ranks, budget)
    ]


def plan_even(tokens: Sequence[int], costs: Sequence[float], ranks: int, budget: int) -> Steps:
    """Units into the fewest micro-steps whose micro-batches hold at most `budget` tokens (a longer unit stands alone), even in cost.

    Longest first, each to the micro-batch that has least so far (at most 4/3 of the best possible, Graham 1969).
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    for steps in count(max(1, -(-sum(min(t, budget) for t in tokens) // (budget * ranks)))):
        slots = steps * ranks
        bins: list[list[int]] = [[] for _ in range(slots)]
        used = [0] * slots
        lightest = [(0.0, b) for b in range(slots)]
        for i in order:
            cost, b = lightest[0]
            if bins[b] and used[b] + tokens[i] > budget:
                break
            bins[b].append(i)
            used[b] += tokens[i]
            heapq.heapreplace(lightest, (cost + costs[i], b))
        else:
            # Micro-batches of like cost share a step.
            bins = [bins[b] for _, b in sorted(lightest, reverse=True)]
            return [bins[s : s + ranks] for s in range(0, slots, ranks)]
    raise AssertionError("unreachable: with as many micro-batches as units every unit fits")


def plan_padded(lengths: Sequence[int], ranks: int, budget: int) -> Steps:
    """The fewest micro-steps of at most `budget` padded tokens a micro-batch (a longer row stands alone), then the smallest largest one.

    Rows sorted by length are cut into consecutive micro-batches: neighbours in length waste the least padding.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def pack(limit: int) -> list[list[int]]:
        bins: list[list[int]] = []
        for i in order:
            if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= limit:
                bins[-1].append(i)
            else:
                bins.append([i])
        return bins

    slots = -(-len(pack(budget)) // ranks) * ranks
    low, high = 0, budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(pack(middle)) <= slots else (middle + 1, high)
    bins = pack(low)
    bins += [[] for _ in range(slots - len(bins))]
    return [bins[s : s + ranks] for s in range(0, slots, ranks)]


def _questions(rows: Sequence[Row], questions: Sequence[str], budget: int) -> list[list[int]]:
    """The rows of each question, in several parts where their tree is larger than the budget."""
    by_question: dict[str, list[int]] = {}
    for i, question in enumerate(questions):
        by_question.setdefault(question, []).append(i)
    units: list[list[int]] = []
    for members in by_question.values():
        if tree_size([rows[i].keys for i in members]) <= budget:
            units.append(members)
            continue
        part: list[int] = []
        for i in sorted(members, key=lambda i: rows[i].keys.tolist()):
            if part and tree_size([rows[j].keys for j in [*part, i]]) > budget:
                units.append(part)
                part = []
            part.append(i)
        units.append(part)
    return units
