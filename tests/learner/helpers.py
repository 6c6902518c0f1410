"""Trajectories written by hand, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    Trajectory,
)

QUESTION = Question(id="q", text="", images=(), answer="")
DIRECT = ((20, 4, 21, 2),)  # thinking, </think>, answer, end of turn
# A turn with a call, an observation, a turn with the answer.
TOOL = ((20, 21, 4, 5, 22, 6, 2), (30, 31), (23, 4, 24, 2))
TOOL_PREFIX = 4  # 20 21 </think> <tool_call>


def trajectory(
    parts: Sequence[Sequence[int]],
    reward: float | None,
    *,
    rollout: int = 0,
    fork: ForkPoint | None = None,
) -> Trajectory:
    """Return a trajectory; `parts` alternate between policy turns and observations."""
    segments = []
    for i, part in enumerate(parts):
        ids = np.array(part, np.int32)
        if i % 2:
            segments.append(ObservationSegment(ids))
        else:
            segments.append(PolicySegment(ids, np.full(len(ids), -1.0, np.float32), 0))
    return Trajectory(
        "q",
        rollout,
        np.array([1, 11], np.int32),
        tuple(segments),
        EndReason.ANSWERED,
        None,
        reward,
        fork,
    )


def group(
    rollouts: Sequence[tuple[Sequence[Sequence[int]], float]], resamples: Sequence[Resample] = ()
) -> Group:
    return Group(
        QUESTION,
        tuple(trajectory(parts, r, rollout=i) for i, (parts, r) in enumerate(rollouts)),
        0,
        tuple(resamples),
    )


def resample(
    source: int,
    rewards: Sequence[float],
    parts: Sequence[Sequence[int]] = TOOL,
    prefix: int = TOOL_PREFIX,
) -> Resample:
    """Return K continuations that repeat the source's prefix, one policy token longer each."""
    continuations = []
    for k, reward in enumerate(rewards):
        turn = (*parts[0][:prefix], *[40] * k, *parts[0][prefix:])
        fork = ForkPoint(source, k, prefix)
        continuations.append(trajectory((turn, *parts[1:]), reward, rollout=source, fork=fork))
    return Resample(source, prefix, tuple(continuations))
