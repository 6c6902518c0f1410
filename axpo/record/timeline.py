"""When each rollout of a step ran: the data of the report's picture (`axpo.report.timeline`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout_workers.trajectory import Group, Trajectory


def bars(groups: Sequence[Group], resampled: Sequence[Group] | None = None) -> list[dict[str, Any]]:
    """Return a bar for each rollout and continuation, in order of their starts.

    The rollouts are those of `groups`, the continuations those of `resampled`, or of `groups` too
    if it is None. A bar has the question, the rollout, the index of the continuation as `fork`
    (None for a rollout), the worker of the group, start and stop in seconds since the first start,
    the spans of waiting for tools, and the reward.
    """
    timed = []
    for group in groups:
        timed += [(group, rollout) for rollout in group.rollouts]
    for group in groups if resampled is None else resampled:
        timed += [(group, continuation) for continuation in _continuations(group)]
    # A trajectory without seconds was not timed.
    timed = [(group, trajectory) for group, trajectory in timed if trajectory.stats.seconds]
    if not timed:
        return []
    zero = min(trajectory.stats.started for _, trajectory in timed)
    found = [_bar(group, trajectory, zero) for group, trajectory in timed]
    return sorted(found, key=lambda bar: (bar["start"], bar["stop"]))


def _continuations(group: Group) -> list[Trajectory]:
    continuations: list[Trajectory] = []
    for resample in group.resamples:
        continuations += resample.continuations
    return continuations


def _bar(group: Group, trajectory: Trajectory, zero: float) -> dict[str, Any]:
    stats = trajectory.stats
    start = stats.started - zero
    # Workers give the spans of their waits from the start of the rollout.
    waits = [[round(start + begin, 3), round(start + end, 3)] for begin, end in stats.tool_spans]
    return {
        "question": group.question.id,
        "rollout": trajectory.rollout,
        "fork": trajectory.fork.index if trajectory.fork else None,
        "worker": group.worker,
        "start": round(start, 3),
        "stop": round(start + stats.seconds, 3),
        "tools": waits,
        "reward": trajectory.reward,
    }
