"""Micro-batches: the fewest steps, even over the ranks, within the budget."""

import numpy as np

from learner.config import LearnerConfig
from learner.plan import plan_even, plan_padded, plan_rows
from learner.rows import Row


def row(keys: list[int]) -> Row:
    nothing = np.zeros(0, np.int64)
    return Row(
        np.array(keys),
        np.array(keys),
        (),
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        0.0,
    )


def plan(rows, questions, ranks, budget, layout):
    config = LearnerConfig(ranks=ranks, micro_batch_tokens=budget, layout=layout)
    return plan_rows(rows, questions, lambda key: 0.0, config)


def test_even_micro_batches_in_the_fewest_steps():
    # 100 tokens over 2 ranks with a budget of 30: two steps. Longest first, each to the lightest:
    # 40 | 20 | 20 | 10 10
    steps = plan_even([40, 20, 20, 10, 10], [40, 20, 20, 10, 10], 2, 30)
    assert [len(step) for step in steps] == [2, 2]
    assert sorted(b for step in steps for b in step) == [[0], [1], [2], [3, 4]]
    assert [0] in steps[0]  # the costliest first


def test_cost_is_balanced_and_tokens_are_bounded():
    # The first unit's images cost as much as the three others together.
    assert sorted(plan_even([10, 10, 10, 10], [30, 10, 10, 10], 2, 100)[0]) == [[0], [1, 2, 3]]
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 400, 97).tolist()
    steps = plan_even(tokens, tokens, 3, 4096)
    bins = [b for step in steps for b in step]
    assert sorted(i for b in bins for i in b) == list(range(97))
    loads = [sum(tokens[i] for i in b) for b in bins]
    assert max(loads) <= 4096
    assert len(steps) == -(-sum(tokens) // (3 * 4096))
    assert max(loads) - min(loads) <= 400


def test_questions_stay_together_in_a_tree_while_they_fit():
    rows = [row([1, 2, 3, 4, i]) for i in range(10, 14)] + [
        row([1, 5, 6, i]) for i in range(20, 23)
    ]
    questions = ["a"] * 4 + ["b"] * 3
    # a: 4 shared + 4 = 8 tokens, b: 3 + 3 = 6
    assert sorted(map(sorted, plan(rows, questions, 2, 100, "tree")[0])) == [
        [0, 1, 2, 3],
        [4, 5, 6],
    ]
    # With a budget of 6 question a needs two trees of two rollouts: 4 + 2 tokens each.
    parts = [sorted(b) for step in plan(rows, questions, 1, 6, "tree") for b in step]
    assert sorted(parts) == [[0, 1], [2, 3], [4, 5, 6]]


def test_packed_rows_are_spread_one_by_one():
    steps = plan([row([1] * n) for n in (10, 20, 10, 20)], ["q"] * 4, 2, 100, "packed")
    assert sorted(sum(10 if i % 2 == 0 else 20 for i in b) for b in steps[0]) == [30, 30]


def test_padded_plan_fills_the_fewest_steps_with_neighbours_in_length():
    # Budget 40: rows of 10 go by four, those of 20 by two: 3 micro-batches in 2 steps of 2 ranks,
    # one place left empty.
    steps = plan_padded([10, 20, 10, 20, 10, 20, 10, 10], 2, 40)
    assert steps == [[[1, 3], [5, 0]], [[2, 4, 6, 7], []]]


def test_padded_plan_keeps_the_budget_and_lets_a_longer_row_stand_alone():
    lengths = [*np.random.default_rng(0).integers(50, 400, 97).tolist(), 5000]
    bins = [b for step in plan_padded(lengths, 3, 4096) for b in step]
    assert sorted(i for b in bins for i in b) == list(range(98))
    assert [97] in bins
    assert all(len(b) * max(lengths[i] for i in b) <= 4096 for b in bins if b and b != [97])


def test_a_rank_is_idle_when_there_is_one_row():
    for layout in ("tree", "packed", "padded"):
        assert sorted(plan([row([1, 2])], ["q"], 2, 100, layout)[0]) == [[], [0]]
