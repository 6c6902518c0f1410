"""Trigger, candidates and allocation against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from resampler.places import Answer, Observation, Prompt
from resampler.rankings import EntropyRise
from resampler.select import Candidate, Held, allocate, triggered
from tests.resampler.helpers import calling, direct, found_in, group, scored, turns


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


def test_only_the_first_call_counts():
    unsure = [(4, 0.1), (5, 0.4), (6, 0.4), (2, 0.9)]
    sure = [(4, 0.1), (5, 0.9), (6, 0.9), (2, 0.9)]
    (found,) = found_in(group("q", turns([unsure, [70], sure], 0.0)))
    assert (found.prefix_tokens, found.score) == (2, pytest.approx(0.4))


def test_candidates_are_the_tool_using_rollouts_of_triggered_groups():
    groups = [
        group("a", direct(1), calling(0.5, 0.0, 1), calling(0.25, 0.0, 2)),
        group("b", calling(0.5, 1.0, 0), calling(0.25, 0.0, 1)),  # one call was right
        group("c", direct(0)),
    ]
    found = [found_in(group_, place=place) for place, group_ in enumerate(groups)]
    assert found[1:] == [[], []]
    places = [(c.group, c.rollout, c.prefix_tokens, c.depth) for c in found[0]]
    assert places == [(0, 2, 3, 0), (0, 1, 3, 1)]
    assert [c.score for c in found[0]] == pytest.approx([0.25, 0.5])


def test_a_literal_tag_inside_thinking_is_no_candidate():
    thinking = [(50, 0.1), (5, 0.1), (60, 0.1), (6, 0.1)]
    literal = turns([[*thinking, (4, 0.9), (51, 0.9), (2, 0.9)]], 0.0)
    never_out = turns([thinking[:3]], 0.0, 1)  # thinking never ends
    assert found_in(group("q", literal, never_out)) == []
    # Beside a real call, the fork point is the real one.
    both = turns([[(5, 0.1), (6, 0.1), (4, 0.9), (5, 0.5), (6, 0.5), (2, 0.9)]], 0.0)
    (found,) = found_in(group("q", both))
    assert (found.prefix_tokens, found.score) == (4, pytest.approx(0.5))


def places(rollouts, **options):
    found = found_in(group("q", *rollouts), **options)
    return [(c.rollout, c.prefix_tokens, pytest.approx(c.score)) for c in found]


def test_from_the_prompt_the_same_rollouts_are_candidates_and_nothing_of_them_is_kept():
    rollouts = (direct(1), calling(0.5, rollout=1), calling(0.25, rollout=2))
    assert places(rollouts) == [(2, 3, 0.25), (1, 3, 0.5)]
    assert places(rollouts, fork_at=Prompt()) == [(2, 0, 0.25), (1, 0, 0.5)]


def test_at_answers_the_rollouts_without_a_tool_are_candidates_if_all_of_those_failed():
    # An answer of 0.4 and 0.2, closed by 0.9.
    wrong = turns([[(50, 0.1), (4, 0.1), (51, 0.4), (52, 0.2), (2, 0.9)]], 0.0, 1)
    silent = turns([[(50, 0.1), (4, 0.1), (2, 0.9)]], 0.0, 2)  # no answer to resample
    at_answers = {"fork_at": Answer()}
    assert places((calling(0.5, 1.0), wrong, silent), **at_answers) == [(1, 2, 0.3)]
    # One of them is right.
    assert places((calling(0.5, 0.0), wrong, direct(1, 2)), **at_answers) == []
    assert places((calling(0.5, 0.0),), **at_answers) == []  # there is none


def branching(rollout: int, *means: float, reward: float = 0.0):
    """A rollout whose turns of 25 tokens have these mean entropies over their first 20 tokens.

    The other 5 tokens have an entropy of 9.
    """
    parts = [part for _ in means for part in ([(50, 0.5)] * 25, [70])]
    source = turns(parts[:-1], reward, rollout)
    entropies = iter(means)
    segments = []
    for segment in source.segments:
        if hasattr(segment, "logprobs"):
            values = np.array([next(entropies)] * 20 + [9.0] * 5, np.float32)
            segment = dataclasses.replace(segment, entropies=values)
        segments.append(segment)
    return dataclasses.replace(source, segments=tuple(segments))


def test_arpo_forks_after_observations_where_the_entropy_rose_most_in_any_group():
    # Turns start at 0, 26, 52. Rises: rollout 0 (a right one) +0.5 and -0.25; rollout 1 none;
    # rollout 2 has no observation.
    arpo = {"ranking": EntropyRise(), "fork_at": Observation()}
    right = branching(0, 1.0, 1.5, 0.75, reward=1.0)
    found = found_in(group("q", right, branching(1, 1.0, 1.0), branching(2, 3.0)), **arpo)
    assert [(c.rollout, c.prefix_tokens, c.score) for c in found] == [(0, 26, -0.5)]
    both = found_in(group("q", branching(0, 1.0, 1.25, 2.0)), **arpo)
    chosen = allocate(held(both), 2)
    assert [(c.prefix_tokens, c.score) for c in chosen] == [(52, -1.0), (26, -0.25)]


def batch_of(*rows: list[float]) -> list[Candidate]:
    return [candidate for place, row in enumerate(rows) for candidate in scored(place, *row)]


def held(found: list[Candidate], **options) -> Held:
    kept = Held(**options)
    for place in {candidate.group for candidate in found}:
        kept.add(place, [candidate for candidate in found if candidate.group == place])
    return kept


def chosen(kept: Held, budget: float, **options) -> list[tuple[int, int]]:
    return [(c.group, c.rollout) for c in allocate(kept, budget, **options)]


def test_allocation_is_breadth_first():
    # Firsts: c 0.1, a 0.2, d 0.5. Seconds: a 0.3, c 0.4. Third: a 0.9. Question b has none.
    found = batch_of([0.9, 0.2, 0.3], [], [0.4, 0.1], [0.5])
    everything = [(2, 1), (0, 1), (3, 0), (0, 2), (2, 0), (0, 0)]
    for prefixes in range(8):
        assert chosen(held(found), prefixes) == everything[:prefixes]
        assert (
            chosen(held(found[::-1]), prefixes) == everything[:prefixes]
        )  # in whatever order they are


def test_ties_go_to_the_earlier_group_and_rollout():
    assert chosen(held(batch_of([0.5, 0.5], [0.5])), 3) == [(0, 0), (1, 0), (0, 1)]


def test_a_candidate_that_what_is_left_cannot_pay_is_passed_over():
    found = batch_of([0.1], [0.2], [0.3])
    prices = {0: 1.5, 1: 2.0, 2: 1.5}
    kept = held(found, price=lambda c: prices[c.group])
    assert chosen(kept, 3.0) == [(0, 0), (2, 0)]
    assert kept.take_without() == {0, 1, 2}


def test_a_candidate_that_is_held_back_uses_up_nothing_and_holds_back_those_behind_it():
    kept = held(batch_of([0.1, 0.4], [0.2], [0.3]))
    assert chosen(kept, 3, may_take=lambda c: c.group != 1) == [(0, 0)]
    # Only question 0's second candidate, the last in order, is beyond what is left.
    assert kept.take_without() == set()
    assert chosen(kept, 2) == [(1, 0), (2, 0)]
    assert (kept.take_without(), kept.take_without()) == ({0, 1, 2}, set())


def test_a_question_without_candidates_is_told_at_once():
    kept = Held()
    kept.add(3, [])
    assert kept.take_without() == {3}
