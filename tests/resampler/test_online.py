"""Choosing while groups come in: worked out by hand, then against the batch rule over many random batches."""

from dataclasses import replace

import numpy as np
import pytest

from resampler.online import Past, Selection, Selections
from resampler.select import Candidate, allocate


def found(place: int, *scores: float) -> list[Candidate]:
    return [Candidate(place, rollout, 1, score) for rollout, score in enumerate(scores)]


def pairs(decision) -> tuple[list[tuple[int, int]], list[int]]:
    return [(c.group, c.rollout) for c in decision.forks], list(decision.settled)


def test_a_candidate_is_taken_as_soon_as_its_expected_rank_is_within_the_budget():
    batch = Selection(questions=4, prefixes=2, schedule="streaming")
    # 1 of 4 seen, its candidate is all there is: rank 1 + 3 * 1/1 = 4 > 2.
    assert pairs(batch.offer(0, found(0, 0.5))) == ([], [])
    # No candidate: 0.5 has rank 1 + 2 * 1/2 = 2.
    assert pairs(batch.offer(1, [])) == ([(0, 0)], [0, 1])
    # 0.9: rank 2 + 1 * 2/3 > 2. The last one has a lower score and takes the place.
    assert pairs(batch.offer(2, found(2, 0.9))) == ([], [])
    assert pairs(batch.offer(3, found(3, 0.7))) == ([(3, 0)], [2, 3])


def test_first_candidates_come_before_second_ones():
    batch = Selection(questions=2, prefixes=2, schedule="streaming")
    assert pairs(batch.offer(0, found(0, 0.1, 0.2))) == (
        [(0, 0)],
        [],
    )  # 0.1: rank 1 + 1; 0.2, a second: 2 + 2
    assert pairs(batch.offer(1, found(1, 0.9))) == ([(1, 0)], [0, 1])


def test_a_spent_budget_settles_every_question():
    batch = Selection(
        questions=3, prefixes=2, schedule="streaming", past=[Past(10)]
    )  # nothing triggered so far: all ranks are low
    assert pairs(batch.offer(2, found(2, 0.5))) == ([(2, 0)], [2])
    assert pairs(batch.offer(1, found(1, 0.4, 0.6))) == ([(1, 0)], [1])
    assert pairs(batch.offer(0, found(0, 0.1))) == ([], [0])


def test_the_last_question_in_sixteen_is_not_waited_for():
    batch = Selection(questions=16, prefixes=2, schedule="streaming")
    for place in range(13):
        batch.offer(place, [])
    # 14 seen: 0.5 is one of 14, rank 1 + 1 * 1/14. 15 seen: 0.9 has rank 2, whatever the last one may bring.
    assert pairs(batch.offer(13, found(13, 0.5))) == ([(13, 0)], [13])
    assert pairs(batch.offer(14, found(14, 0.9))) == ([(14, 0)], [14])
    assert pairs(batch.offer(15, found(15, 0.1))) == ([], [15])


def test_a_straggler_gets_what_is_left():
    batch = Selection(questions=16, prefixes=2, schedule="streaming")
    for place in range(15):
        batch.offer(place, found(place, 0.5) if place == 3 else [])
    assert pairs(batch.offer(15, found(15, 0.9, 0.95))) == ([(15, 0)], [15])


def test_a_dear_candidate_counts_for_several():
    batch = Selection(questions=4, prefixes=3, schedule="streaming", prices={"search": 2.0})
    dear = replace(found(0, 0.5)[0], tool="search")
    assert pairs(batch.offer(0, [dear])) == ([], [])  # rank 2 + 3 * 2/1
    assert pairs(batch.offer(1, [])) == ([], [1])  # 2 + 2 * 2/2
    assert pairs(batch.offer(2, [])) == ([(0, 0)], [0, 2])  # 2 + 1 * 2/3
    assert pairs(batch.offer(3, [replace(dear, group=3)])) == (
        [],
        [3],
    )  # 1 is left, which does not pay for it


def test_the_dearest_tool_is_tried_once_a_batch():
    batch = Selection(questions=1, prefixes=3, schedule="batch", prices={"search": 1e6})
    assert pairs(batch.offer(0, [replace(c, tool="search") for c in found(0, 0.5, 0.6)])) == (
        [(0, 0)],
        [0],
    )


@pytest.mark.parametrize("trigger", [0.2, 0.8])
def test_with_prices_the_budget_holds_and_the_choice_is_nearly_that_of_the_batch_rule(trigger):
    rng = np.random.default_rng(0)
    prices = {"search": 2.5}
    rules = {schedule: Selections(schedule) for schedule in ("batch", "streaming")}
    same = chosen = 0
    for step in range(200):
        batch = [
            found(i, *rng.uniform(size=rng.integers(1, 5))) if rng.uniform() < trigger else []
            for i in range(16)
        ]
        batch = [
            [replace(c, tool=("search", "zoom")[i % 2]) for c in row] for i, row in enumerate(batch)
        ]
        taken = {schedule: set() for schedule in rules}
        for place in map(int, rng.permutation(16)):
            for schedule, selections in rules.items():
                taken[schedule] |= set(
                    selections.offer(step, place, batch[place], 16, 8, prices).forks
                )
        assert all(sum(prices.get(c.tool, 1) for c in forks) <= 8 for forks in taken.values())
        same, chosen = same + len(taken["batch"] & taken["streaming"]), chosen + len(taken["batch"])
    print(f"\ntrigger {trigger}, prices: {same / chosen:.1%} of the batch rule's choice")
    assert same / chosen >= 0.8


def test_what_batches_teach_is_remembered():
    selections = Selections("streaming")
    for place in range(4):
        selections.offer(0, place, found(place, 0.5), 4, 2)
    # A question in two had a score below 0.4 in no past batch: rank 1 + 3 * 1/5 = 1.6 <= 2 at once.
    assert pairs(selections.offer(1, 3, found(3, 0.4), 4, 2)) == ([(3, 0)], [3])


@pytest.mark.parametrize("trigger", [0.2, 0.4, 0.8])
def test_the_choice_is_nearly_that_of_the_batch_rule(trigger):
    rng = np.random.default_rng(0)
    questions, prefixes = 16, 8
    selections, same, chosen = Selections("streaming"), 0, 0
    for step in range(200):
        batch = [
            found(i, *rng.uniform(size=rng.integers(1, 5))) if rng.uniform() < trigger else []
            for i in range(questions)
        ]
        taken = set()
        for place in rng.permutation(questions):
            taken |= {
                (c.group, c.rollout)
                for c in selections.offer(step, int(place), batch[place], questions, prefixes).forks
            }
        wanted = {(c.group, c.rollout) for c in allocate(batch, prefixes)}
        assert len(taken) == len(wanted)  # never more than the budget, and all of it
        same, chosen = same + len(taken & wanted), chosen + len(wanted)
    print(f"\ntrigger {trigger}: {same / chosen:.1%} of the batch rule's choice")
    assert same / chosen >= 0.85
