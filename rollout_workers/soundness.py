"""Whether what a worker answered is what it was asked for: a worker may answer garbage."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

from rollout_workers.trajectory import Group, PolicySegment, Question, Trajectory


def is_sound(group: object, question: Question, n: int) -> TypeGuard[Group]:
    """Return whether an answer is a group of n rollouts of this question, with finite numbers."""
    # A rollout without a reward is sound: infrastructure cut it short.
    return (
        isinstance(group, Group)
        and group.question.id == question.id
        and [t.rollout for t in group.rollouts] == list(range(n))
        and all(_is_sound_trajectory(t, question) for t in group.rollouts)
    )


def _is_sound_trajectory(trajectory: Trajectory, question: Question) -> bool:
    if trajectory.question_id != question.id:
        return False
    if trajectory.reward is not None and not math.isfinite(trajectory.reward):
        return False
    return all(
        _is_sound_segment(segment)
        for segment in trajectory.segments
        if isinstance(segment, PolicySegment)
    )


def _is_sound_segment(segment: PolicySegment) -> bool:
    # A log-probability above 0 is none.
    return (
        len(segment.token_ids) == len(segment.logprobs)
        and bool(np.isfinite(segment.logprobs).all())
        and bool((segment.logprobs <= 0).all())
    )
