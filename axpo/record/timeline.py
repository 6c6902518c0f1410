"""Say when each rollout of a step ran, for the picture in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout_workers.trajectory import Group, Trajectory


def bars(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A bar a rollout and fork, in order of their starts: question, rollout, fork (None: a rollout), worker of the group, start and stop
    in seconds since the first start, spans of waiting for tools, reward."""
    found = [
        (g, t)
        for g in groups
        for t in (*g.rollouts, *(c for r in g.resamples for c in r.continuations))
        if t.stats.seconds
    ]
    if not found:
        return []
    zero = min(t.stats.started for _, t in found)
    return sorted(
        (_bar(g, t, t.stats.started - zero) for g, t in found),
        key=lambda bar: (bar["start"], bar["stop"]),
    )


def _bar(group: Group, trajectory: Trajectory, start: float) -> dict[str, Any]:
    return {
        "question": group.question.id,
        "rollout": trajectory.rollout,
        "fork": trajectory.fork.index if trajectory.fork else None,
        "worker": group.worker,
        "start": round(start, 3),
        "stop": round(start + trajectory.stats.seconds, 3),
        "tools": [
            [round(start + a, 3), round(start + b, 3)] for a, b in trajectory.stats.tool_spans
        ],
        "reward": trajectory.reward,
    }
