"""Whether what a worker answered is what it was asked for: a worker may answer garbage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from rollout_workers.trajectory import Floats, Group, PolicySegment, Question, Trajectory


def is_sound(group: object, question: Question, n: int) -> TypeGuard[Group]:
    """Return whether an answer is a group of n rollouts of this question, with finite numbers."""
    # A rollout without a reward is sound: infrastructure cut it short.
    return (
        isinstance(group, Group)
        and group.question.id == question.id
        and [t.rollout for t in group.rollouts] == list(range(n))
        and all(_is_sound_trajectory(t, question) for t in group.rollouts)
        and _are_sound_logprobs(group.rollouts)
    )


def _is_sound_trajectory(trajectory: Trajectory, question: Question) -> bool:
    if trajectory.question_id != question.id:
        return False
    if trajectory.reward is not None and not math.isfinite(trajectory.reward):
        return False
    return all(
        len(segment.token_ids) == len(segment.logprobs) for segment in _policy_segments(trajectory)
    )


def _are_sound_logprobs(trajectories: Sequence[Trajectory]) -> bool:
    """Return whether every log-probability is a finite number that is not above 0."""
    logprobs: list[Floats] = []
    for trajectory in trajectories:
        logprobs += [segment.logprobs for segment in _policy_segments(trajectory)]
    # All at once: the driver does this for every group, and numpy's calls cost more than its sums.
    joined = np.concatenate(logprobs) if logprobs else np.zeros(0, np.float32)
    return bool((np.isfinite(joined) & (joined <= 0)).all())


def _policy_segments(trajectory: Trajectory) -> list[PolicySegment]:
    return [segment for segment in trajectory.segments if isinstance(segment, PolicySegment)]
