"""Trigger, ranking and budget against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from resampler.select import (
    Candidate,
    adapted,
    allocate,
    budget,
    candidates,
    chance,
    confidence,
    entropy,
    failed_up_to,
    prices,
    tool_cost,
    triggered,
)
from rollout_workers.trajectory import Resample, RolloutStats
from tests.resampler.helpers import calling, direct, group, turns
from tests.tokens import TOKENS


@pytest.mark.parametrize(
    ("rewards", "uses_tools", "expected"),
    [
        ([0, 0, 0], [True, True, False], True),  # all wrong
        ([0, 0, 1], [True, True, False], True),  # a no-tool sibling is right: still
        ([0, 1, 0], [True, True, False], False),  # one call succeeded
        ([0, 0, 0], [False, False, False], False),  # no tool use at all
        ([1, 1, 0], [False, False, True], True),
    ],
)
def test_trigger(rewards, uses_tools, expected):
    assert triggered(np.array(rewards, float), np.array(uses_tools)) is expected


@pytest.mark.parametrize(
    ("rewards", "quantile", "expected"),
    [
        ([0, 0, 0, 1], 0.5, 0.0),
        ([0, 1, 1, 1], 0.5, 0.0),  # the median is 1, but the best never failed
        ([0, 1], 0.01, 0.0),
        ([0.1, 0.2, 0.3, 0.4, 0.9], 0.5, 0.3),
        ([0.1, 0.2, 0.3, 0.4], 0.5, 0.2),  # between 0.2 and 0.3: the lower
        ([0.1, 0.2, 0.9, 0.9], 0.9, 0.2),
        ([0.7, 0.7], 0.5, 9.0),
        ([], 0.5, 9.0),
    ],
)
def test_what_failed_by_quantile(rewards, quantile, expected):
    assert failed_up_to(rewards, quantile, otherwise=9.0) == expected


def test_confidence_is_the_mean_probability_of_the_call_with_both_tags():
    # Thinking 0.1, opening tag 0.5, two tokens of the call 0.3 and 0.6, closing tag 1.0, end of turn 0.2.
    source = turns([[(50, 0.1), (4, 0.1), (5, 0.5), (60, 0.3), (61, 0.6), (6, 1.0), (2, 0.2)]], 0.0)
    assert confidence(source, (2, 6)) == pytest.approx((0.5 + 0.3 + 0.6 + 1.0) / 4)  # 0.6


def test_confidence_of_a_call_that_is_never_closed_stops_before_the_end_of_turn():
    source = turns([[(4, 0.1), (5, 0.4), (60, 0.2), (2, 0.9)]], 0.0)
    ((found,),) = candidates([group("q", source)], TOKENS, "confidence", seed=0, step=0)
    assert found.score == pytest.approx(0.3)


def test_only_the_first_call_counts():
    source = turns(
        [[(4, 0.1), (5, 0.4), (6, 0.4), (2, 0.9)], [70], [(4, 0.1), (5, 0.9), (6, 0.9), (2, 0.9)]],
        0.0,
    )
    ((found,),) = candidates([group("q", source)], TOKENS, "confidence", seed=0, step=0)
    assert (found.prefix_tokens, found.score) == (2, pytest.approx(0.4))


def test_entropy_is_the_mean_over_the_same_span():
    source = calling(0.5, entropy=1.25)
    assert entropy(source, (2, 5)) == pytest.approx(1.25)
    with pytest.raises(ValueError, match="rollout 3 of question q has no entropies"):
        entropy(calling(0.5, rollout=3), (2, 5))


def test_candidates_are_the_tool_using_rollouts_of_triggered_groups():
    groups = [
        group("a", direct(1), calling(0.5, 0.0, 1), calling(0.25, 0.0, 2)),
        group("b", calling(0.5, 1.0, 0), calling(0.25, 0.0, 1)),  # one call was right
        group("c", direct(0)),
    ]
    found = candidates(groups, TOKENS, "confidence", seed=0, step=0)
    assert [[(c.group, c.rollout, c.prefix_tokens) for c in f] for f in found] == [
        [(0, 1, 3), (0, 2, 3)],
        [],
        [],
    ]
    assert [c.score for c in found[0]] == pytest.approx([0.5, 0.25])


def test_a_literal_tag_inside_thinking_is_no_candidate():
    literal = turns(
        [[(50, 0.1), (5, 0.1), (60, 0.1), (6, 0.1), (4, 0.9), (51, 0.9), (2, 0.9)]], 0.0
    )
    never_out = turns([[(50, 0.1), (5, 0.1), (60, 0.1)]], 0.0, 1)  # thinking never ends
    assert candidates([group("q", literal, never_out)], TOKENS, "confidence", seed=0, step=0) == [
        []
    ]
    # Beside a real call, the fork point is the real one.
    both = turns([[(5, 0.1), (6, 0.1), (4, 0.9), (5, 0.5), (6, 0.5), (2, 0.9)]], 0.0)
    ((found,),) = candidates([group("q", both)], TOKENS, "confidence", seed=0, step=0)
    assert (found.prefix_tokens, found.score) == (4, pytest.approx(0.5))


def places(rollouts, fork_at):
    (found,) = candidates(
        [group("q", *rollouts)], TOKENS, "confidence", seed=0, step=0, fork_at=fork_at
    )
    return [(c.rollout, c.prefix_tokens, pytest.approx(c.score)) for c in found]


def test_from_the_prompt_the_same_rollouts_are_candidates_in_the_same_order_and_nothing_of_them_is_kept():
    rollouts = (direct(1), calling(0.5, rollout=1), calling(0.25, rollout=2))
    assert places(rollouts, "first_call") == [(1, 3, 0.5), (2, 3, 0.25)]
    assert places(rollouts, "prompt") == [(1, 0, 0.5), (2, 0, 0.25)]


def test_at_answers_the_rollouts_without_a_tool_are_candidates_where_all_of_those_failed():
    wrong = turns(
        [[(50, 0.1), (4, 0.1), (51, 0.4), (52, 0.2), (2, 0.9)]], 0.0, 1
    )  # answer of 0.4 and 0.2, closed by 0.9
    silent = turns([[(50, 0.1), (4, 0.1), (2, 0.9)]], 0.0, 2)  # no answer to resample
    assert places((calling(0.5, 1.0), wrong, silent), "answer") == [(1, 2, 0.3)]
    assert places((calling(0.5, 0.0), wrong, direct(1, 2)), "answer") == []  # one of them is right
    assert places((calling(0.5, 0.0),), "answer") == []  # there is none


def branching(rollout: int, *means: float, reward: float = 0.0):
    """A rollout whose turns of 25 tokens have these mean entropies over their first 20 tokens, and 9 after."""
    parts = [p for _ in means for p in ([(50, 0.5)] * 25, [70])][:-1]
    source = turns(parts, reward, rollout)
    segments = iter(means)
    filled = [
        dataclasses.replace(s, entropies=np.array([next(segments)] * 20 + [9.0] * 5, np.float32))
        if hasattr(s, "logprobs")
        else s
        for s in source.segments
    ]
    return dataclasses.replace(source, segments=tuple(filled))


def test_arpo_forks_after_observations_where_the_entropy_rose_most_in_any_group():
    # Turns start at 0, 26, 52. Rises: rollout 0 (a right one) +0.5 and -0.25; rollout 1 none; rollout 2 has no observation.
    rollouts = (branching(0, 1.0, 1.5, 0.75, reward=1.0), branching(1, 1.0, 1.0), branching(2, 3.0))
    (found,) = candidates(
        [group("q", *rollouts)], TOKENS, "entropy", seed=0, step=0, fork_at="observation"
    )
    assert [(c.rollout, c.prefix_tokens, c.score) for c in found] == [(0, 26, -0.5)]
    both = candidates(
        [group("q", branching(0, 1.0, 1.25, 2.0))],
        TOKENS,
        "entropy",
        seed=0,
        step=0,
        fork_at="observation",
    )
    assert [(c.prefix_tokens, c.score) for c in allocate(both, 2)] == [(52, -1.0), (26, -0.25)]


def test_entropy_ranks_the_highest_first():
    groups = [group("a", calling(0.5, entropy=0.5), calling(0.5, rollout=1, entropy=2.0))]
    first, _ = allocate(candidates(groups, TOKENS, "entropy", seed=0, step=0), 2)
    assert first.rollout == 1


def test_chance_is_seeded_and_knows_no_order():
    groups = [
        group(q, *(calling(0.5, rollout=i, question=q) for i in range(4))) for q in ("a", "b")
    ]
    one = candidates(groups, TOKENS, "random", seed=7, step=3)
    assert one == candidates(groups, TOKENS, "random", seed=7, step=3)
    other_order = candidates(groups[::-1], TOKENS, "random", seed=7, step=3)
    assert [c.score for c in one[0]] == [c.score for c in other_order[1]]
    scores = {chance(seed, step, "a", 0, 3) for seed in (0, 1) for step in (0, 1)}
    assert len(scores) == 4
    assert 0.45 < np.mean([chance(0, 0, "q", i, 3) for i in range(2000)]) < 0.55


@pytest.mark.parametrize(
    ("questions", "n", "k", "ratio", "expected"),
    [
        (8, 8, 4, 0.25, 16),  # 16 / 4 = 4 prefixes
        (3, 8, 4, 0.25, 4),  # 6 / 4 = 1.5: one prefix, never more than the budget
        (1, 8, 4, 0.25, 0),  # 2 / 4 = 0.5: none
        (100, 1, 1, 0.29, 29),
        (8, 8, 4, 0.0, 0),
        (5, 8, 3, 0.25, 9),  # 10 / 3 = 3.3
    ],
)
def test_budget(questions, n, k, ratio, expected):
    assert budget(questions, n, k, ratio) == expected


@pytest.mark.parametrize(
    ("prefixes", "rate", "expected"),
    [
        (8, [], 8),
        (8, [True] * 8, 8),
        (8, [True, False, False, False], 8),
        (8, [True] + [False] * 7, 4),
        (8, [False], 1),
        (0, [False], 0),
    ],
)
def test_a_budget_adapted_to_a_target_of_a_quarter(prefixes, rate, expected):
    assert adapted(prefixes, rate, 0.25) == expected


def test_a_prefix_counts_for_what_its_tool_costs():
    costs = [("search", 6.0), ("zoom", 0.5), ("search", 2.0), ("python", 2.0), ("", 0.0)]
    assert prices(costs, 2.0) == {
        "search": 2.0,
        "zoom": 1.0,
        "python": 1.0,
        "": 1.0,
    }  # the mean of 6 and 2 is twice the target
    assert prices(costs, None) == {}
    assert prices((), 2.0) == {}


def test_the_cost_of_a_resample_is_what_its_tools_took_and_charge():
    def continuation(seconds, *tools):
        return dataclasses.replace(
            calling(0.5), stats=RolloutStats(tool_seconds=seconds, tools=tools)
        )

    resample = Resample(
        0, 3, (continuation(0.5, "search", "zoom"), continuation(0.25, "search"), continuation(0.0))
    )
    assert tool_cost(resample, {"search": 2.0}) == 0.75 + 2 * 2.0
    assert tool_cost(resample, {}) == 0.75


def scores(*rows: list[float]) -> list[list[Candidate]]:
    return [[Candidate(q, i, 1, s) for i, s in enumerate(row)] for q, row in enumerate(rows)]


def chosen(rows: list[list[Candidate]], prefixes: int) -> list[tuple[int, int]]:
    return [(c.group, c.rollout) for c in allocate(rows, prefixes)]


def test_allocation_is_breadth_first():
    # Firsts: c 0.1, a 0.2, d 0.5. Seconds: a 0.3, c 0.4. Third: a 0.9. Question b has none.
    rows = scores([0.9, 0.2, 0.3], [], [0.4, 0.1], [0.5])
    whole = [(2, 1), (0, 1), (3, 0), (0, 2), (2, 0), (0, 0)]
    for prefixes in range(8):
        assert chosen(rows, prefixes) == whole[:prefixes]


def test_ties_go_to_the_earlier_group_and_rollout():
    assert chosen(scores([0.5, 0.5], [0.5]), 3) == [(0, 0), (1, 0), (0, 1)]
