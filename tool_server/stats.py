"""What a tool's calls were like: outcomes, latency, time in the queue."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tool_server.tool import ToolResult, ToolStatus

WINDOW = 4096
"""Latest calls that percentiles are taken over."""


@dataclass
class ToolStats:
    """Of one tool on one server since they were last taken."""

    outcomes: Counter[ToolStatus] = field(default_factory=Counter)
    cached: int = 0
    seconds: deque[float] = field(
        default_factory=lambda: deque(maxlen=WINDOW)
    )  # running, of calls that ran
    waits: deque[float] = field(
        default_factory=lambda: deque(maxlen=WINDOW)
    )  # in the queue, of calls that ran

    def record(
        self, result: ToolResult, wait: float | None = None, *, cached: bool = False
    ) -> None:
        """One answered call; `wait` is None where it was answered without a slot."""
        self.outcomes[result.status] += 1
        self.cached += cached
        if wait is not None:
            self.seconds.append(result.seconds)
            self.waits.append(wait)


def summarize(servers: Iterable[dict[str, ToolStats]]) -> dict[str, dict[str, float]]:
    """Tool -> `calls`, `<outcome>` (counts of those that occurred), `cached`, and the 50th, 95th and 99th percentile of running
    and waiting as `p50_s`, ..., `wait_p99_s`; tools without a call are left out."""
    merged: dict[str, list[ToolStats]] = {}
    for server in servers:
        for name, stats in server.items():
            merged.setdefault(name, []).append(stats)
    return {
        name: _summary(parts)
        for name, parts in merged.items()
        if any(part.outcomes for part in parts)
    }


def _summary(parts: list[ToolStats]) -> dict[str, float]:
    outcomes = sum((part.outcomes for part in parts), Counter[ToolStatus]())
    calls = outcomes.total() - outcomes[ToolStatus.OVERLOADED]  # asked again later
    numbers = {
        "calls": float(calls),
        **{str(status): float(count) for status, count in sorted(outcomes.items())},
    }
    if cached := sum(part.cached for part in parts):
        numbers["cached"] = float(cached)
    for prefix, values in (
        ("", [s for p in parts for s in p.seconds]),
        ("wait_", [w for p in parts for w in p.waits]),
    ):
        if values:
            numbers |= {
                f"{prefix}p{q}_s": float(value)
                for q, value in zip((50, 95, 99), np.percentile(values, (50, 95, 99)), strict=True)
            }
    return numbers
