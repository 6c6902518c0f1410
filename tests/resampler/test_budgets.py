"""Budgets against numbers worked out by hand: how many prefixes, and what each one costs."""

import dataclasses

import pytest
from pydantic import ValidationError

from resampler.budgets import AdaptiveBudget, PaperBudget, tool_cost, whole_prefixes
from resampler.history import History, Outcome
from rollout_workers.trajectory import Group, Question, Resample, RolloutStats
from tests.resampler.helpers import calling


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
def test_the_papers_budget(questions, n, k, ratio, expected):
    assert whole_prefixes(questions, n, k, ratio) * k == expected
    assert PaperBudget(ratio=ratio).prefixes(questions, n, k, History((False,))) * k == expected


@pytest.mark.parametrize(
    ("prefixes", "recoveries", "expected"),
    [
        (8, [], 8),
        (8, [True] * 8, 8),
        (8, [True, False, False, False], 8),
        (8, [True] + [False] * 7, 4),
        (8, [False], 1),
        (0, [False], 0),
    ],
)
def test_a_budget_adapted_to_a_target_of_a_quarter(prefixes, recoveries, expected):
    budget = AdaptiveBudget(ratio=1, target_recovery=0.25)
    assert budget.prefixes(prefixes, 2, 2, History(tuple(recoveries))) == expected


def test_without_a_target_for_recoveries_the_whole_budget_is_spent():
    budget = AdaptiveBudget(ratio=1, target_cost_s=2.0)
    assert budget.prefixes(8, 2, 2, History((False,) * 8)) == 8


def test_a_prefix_counts_for_what_its_tool_costs():
    costs = (("search", 6.0), ("zoom", 0.5), ("search", 2.0), ("python", 2.0), ("", 0.0))
    priced = AdaptiveBudget(target_cost_s=2.0)
    # The mean of 6 and 2 is twice the target.
    expected = {"search": 2.0, "zoom": 1.0, "python": 1.0, "": 1.0}
    assert priced.prices(History(costs=costs)) == expected
    assert priced.prices(History()) == {}
    assert AdaptiveBudget(target_recovery=0.5).prices(History(costs=costs)) == {}
    assert PaperBudget().prices(History(costs=costs)) == {}


def continuation(seconds, *tools, reward=0.0):
    stats = RolloutStats(tool_seconds=seconds, tools=tools)
    return dataclasses.replace(calling(0.5, reward), stats=stats)


RESAMPLE = Resample(
    0, 3, (continuation(0.5, "search", "zoom"), continuation(0.25, "search"), continuation(0.0))
)


def test_the_cost_of_a_resample_is_what_its_tools_took_and_charge():
    assert tool_cost(RESAMPLE, {"search": 2.0}) == 0.75 + 2 * 2.0
    assert tool_cost(RESAMPLE, {}) == 0.75


def test_what_came_of_a_resample():
    source = continuation(0.0, "zoom", "search")
    group = Group(Question("q", "?", (), "7"), (source,), 0)
    budget = AdaptiveBudget(target_cost_s=1.0, call_costs={"search": 2.0})
    assert budget.outcome(group, RESAMPLE) == Outcome(False, "zoom", 4.75)
    right = Resample(0, 3, (continuation(0.0, reward=1.0), continuation(0.0)))
    assert PaperBudget().outcome(group, right) == Outcome(True, "zoom", 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected target_recovery or target_cost_s, or both"),
        (
            {"target_recovery": 0.5, "call_costs": {"search": 1.0}},
            "call_costs means nothing without target_cost_s",
        ),
        ({"target_recovery": 1.5}, "less than or equal to 1"),
    ],
)
def test_an_adaptive_budget_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        AdaptiveBudget(**options)
