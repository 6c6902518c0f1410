"""What is derived from a trajectory: masks, turns, spans.

Ids are written by hand: 1 is think_close, 2 call_open, 3 call_close, 4 im_end.
"""

import numpy as np
import pytest

from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
    recovered,
    tool_call_spans,
    turns,
    uses_tools,
)

TOKENS = SpecialTokens(
    im_start=5,
    im_end=4,
    think_close=1,
    call_open=2,
    call_close=3,
    vision_start=7,
    vision_end=8,
    image_pad=9,
    video_pad=0,
)


def policy(*ids):
    return PolicySegment(
        np.array(ids, np.int32), -np.arange(1, len(ids) + 1, dtype=np.float32), policy_version=3
    )


def observation(*ids):
    return ObservationSegment(np.array(ids, np.int32))


def trajectory(*segments, **fields):
    return Trajectory(
        "q", 0, np.array([50], np.int32), segments, fields.pop("end", EndReason.ANSWERED), **fields
    )


TWO_TURNS = trajectory(policy(20, 1, 2, 21, 3, 4), observation(30, 31), policy(22, 1, 23, 4))


def test_arrays_share_one_axis():
    assert TWO_TURNS.response_ids.tolist() == [20, 1, 2, 21, 3, 4, 30, 31, 22, 1, 23, 4]
    assert TWO_TURNS.logprobs.tolist() == [-1, -2, -3, -4, -5, -6, 0, 0, -1, -2, -3, -4]
    assert TWO_TURNS.policy_mask.tolist() == [True] * 6 + [False] * 2 + [True] * 4
    assert TWO_TURNS.entropies is None
    assert TWO_TURNS.policy_tokens == 10


def test_turns_and_spans():
    assert turns(TWO_TURNS) == [(0, 6), (8, 12)]
    assert tool_call_spans(TWO_TURNS, TOKENS) == [(2, 5)]


def test_a_tag_inside_thinking_is_no_call():
    thinking = trajectory(policy(20, 2, 21, 3, 1, 23, 4))
    assert not uses_tools(thinking, TOKENS)
    assert tool_call_spans(trajectory(policy(20, 2, 1, 2, 21, 3, 4)), TOKENS) == [(3, 6)]


def test_a_call_that_is_never_closed_runs_to_the_end_of_its_turn():
    assert tool_call_spans(
        trajectory(policy(1, 2, 21, 4), observation(30), policy(1, 2, 21)), TOKENS
    ) == [(1, 3), (6, 8)]


def test_two_calls_in_a_turn():
    assert tool_call_spans(trajectory(policy(1, 2, 21, 3, 24, 2, 22, 3, 4)), TOKENS) == [
        (1, 4),
        (5, 8),
    ]


@pytest.mark.parametrize(
    ("source", "best", "expected"),
    [(0.0, 1.0, True), (0.0, 0.0, False), (0.5, 0.75, True), (0.5, 0.5, False)],
)
def test_recovered_means_better_than_the_source(source, best, expected):
    resample = Resample(0, 3, (trajectory(reward=0.0), trajectory(reward=best)))
    group = Group(Question("q", "?", (), "7"), (trajectory(reward=source),), 0, (resample,))
    assert recovered(group, resample) is expected


def test_a_forks_prefix_and_continuation_are_one_turn():
    fork = trajectory(
        policy(20, 1, 2), policy(25, 3, 4), fork=ForkPoint(source=0, index=1, prefix_tokens=3)
    )
    assert turns(fork) == [(0, 6)]
    assert tool_call_spans(fork, TOKENS) == [(2, 5)]
    assert fork.policy_tokens == 3


def test_a_prefix_cuts_the_last_turn_and_keeps_versions():
    (cut,) = frozen_prefix(TWO_TURNS, 3)
    assert (cut.token_ids.tolist(), cut.logprobs.tolist(), cut.policy_version) == (
        [20, 1, 2],
        [-1, -2, -3],
        3,
    )
    assert [len(s.token_ids) for s in frozen_prefix(TWO_TURNS, 9)] == [6, 2, 1]


def test_a_prefix_may_be_empty_or_end_with_an_observation():
    assert frozen_prefix(TWO_TURNS, 0) == ()
    assert [len(s.token_ids) for s in frozen_prefix(TWO_TURNS, 8)] == [6, 2]


@pytest.mark.parametrize("tokens", [-1, 7, 13])
def test_a_prefix_ends_where_the_policy_can_go_on(tokens):
    with pytest.raises(ValueError, match="does not end where the policy can go on"):
        frozen_prefix(TWO_TURNS, tokens)


def test_a_group_without_all_rewards_has_none():
    question = Question("q", "?", (), "7")
    scored, failed = trajectory(reward=1.0), trajectory(end=EndReason.DEADLINE)
    assert Group(question, (scored, scored), worker=0).rewards.tolist() == [1, 1]
    with pytest.raises(ValueError, match="ended in deadline and has no reward"):
        _ = Group(question, (scored, failed), worker=0).rewards
