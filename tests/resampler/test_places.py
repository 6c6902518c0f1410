"""Fork places: which points they give, and what follows from each for the rest of the method.

Ids by hand: 4 ends thinking, 5 opens a call, 6 closes it, 2 ends a turn.
"""

import numpy as np
import pytest

from resampler.places import (
    Answer,
    EveryCall,
    FirstCall,
    ForkPlace,
    Observation,
    Prompt,
    places,
)
from rollout_workers.trajectory import (
    EndReason,
    ObservationSegment,
    PolicySegment,
    Trajectory,
    uses_tools,
)
from tests.resampler.helpers import calling, direct, found_in, group, turns
from tests.tokens import TOKENS


def policy(*ids):
    return PolicySegment(np.array(ids, np.int32), np.zeros(len(ids), np.float32), 0)


def observation(*ids):
    return ObservationSegment(np.array(ids, np.int32))


def trajectory(*segments):
    return Trajectory("q", 0, np.array([1], np.int32), segments, EndReason.ANSWERED)


@pytest.mark.parametrize(
    ("fork_at", "expected"),
    [
        (FirstCall(), [(2, (1, 3))]),
        (EveryCall(), [(2, (1, 3)), (6, (5, 8)), (11, (10, 13))]),
        (Prompt(), [(0, (1, 3))]),
        (Answer(), []),
        (Observation(), [(9, (9, 14))]),
    ],
)
def test_fork_points(fork_at, expected):
    calls = trajectory(policy(4, 5, 6, 50, 51, 5, 52, 6), observation(70), policy(4, 5, 53, 6, 2))
    assert fork_at.points(calls, TOKENS) == expected


def test_an_answer_is_forked_after_its_thinking():
    answer = Answer()
    assert answer.points(trajectory(policy(50, 5, 4, 51, 52, 2)), TOKENS) == [(3, (3, 5))]
    assert answer.points(trajectory(policy(50, 4, 2)), TOKENS) == []  # no answer
    assert answer.points(trajectory(policy(50, 51)), TOKENS) == []  # thinking without an end
    assert EveryCall().points(trajectory(policy(50, 4, 2)), TOKENS) == []


def test_the_papers_prefix_ends_with_the_first_opening_tag():
    assert FirstCall().points(calling(0.5), TOKENS) == [(3, (2, 5))]
    # A tag inside thinking opens no call.
    thinking = trajectory(policy(50, 5, 51, 6, 4, 53, 2))
    assert not uses_tools(thinking, TOKENS)
    assert FirstCall().points(thinking, TOKENS) == []


def test_the_subgroup_is_those_that_call_or_for_answers_those_that_do_not():
    rollouts = (direct(1), calling(0.5))
    subgroups = {
        name: [places.parse(name).subgroup(t, TOKENS) for t in rollouts]
        for name, _ in places.described()
    }
    assert subgroups == {
        "first_call": [False, True],
        "every_call": [False, True],
        "prompt": [False, True],
        "answer": [True, False],
        "observation": [True, True],
    }


class Fixed(ForkPlace):
    """Fork at a given number of tokens."""

    at: int

    def points(self, trajectory, tokens):
        return [(self.at, (2, 5))]


@pytest.mark.parametrize("tokens", [0, 3, 10])
def test_a_place_of_ones_own_may_fork_anywhere_in_a_rollout(tokens):
    found = found_in(group("q", calling(0.5)), fork_at=Fixed(at=tokens))
    assert [candidate.prefix_tokens for candidate in found] == [tokens]


@pytest.mark.parametrize("tokens", [-1, 11, 12])
def test_a_prefix_lies_in_its_rollout_and_leaves_something_to_continue(tokens):
    # The rollout has 11 tokens, and its last turn came to its end.
    with pytest.raises(ValueError, match=rf"a prefix of {tokens} tokens for rollout 0 of question"):
        found_in(group("q", calling(0.5)), fork_at=Fixed(at=tokens))


def test_a_rollout_that_broke_off_after_the_opening_tag_can_be_forked_there():
    broken_off = turns([[(50, 0.9), (4, 0.9), (5, 0.5)]], 0.0)
    assert [c.prefix_tokens for c in found_in(group("q", broken_off))] == [3]
