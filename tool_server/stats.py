"""Count what a tool's calls were like: outcomes, latency, time in the queue."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tool_server.tool import ToolResult, ToolStatus

WINDOW = 4096
"""Latest calls that percentiles are taken over."""

PERCENTILES = (50, 95, 99)


def _window() -> deque[float]:
    return deque(maxlen=WINDOW)


@dataclass
class ToolStats:
    """The numbers of one tool on one server since they were last taken.

    Attributes:
        outcomes: how many calls ended in each status.
        cached: calls that the cache answered.
        seconds: running time of each call that ran.
        waits: seconds in the queue of each call that ran.
    """

    outcomes: Counter[ToolStatus] = field(default_factory=Counter)
    cached: int = 0
    seconds: deque[float] = field(default_factory=_window)
    waits: deque[float] = field(default_factory=_window)

    def record(
        self, result: ToolResult, wait: float | None = None, *, cached: bool = False
    ) -> None:
        """Count one answered call.

        Args:
            result: the answer.
            wait: seconds in the queue; None if the call was answered without a slot.
            cached: the answer came from the cache.
        """
        self.outcomes[result.status] += 1
        self.cached += cached
        if wait is not None:
            self.seconds.append(result.seconds)
            self.waits.append(wait)


def summarize(servers: Iterable[dict[str, ToolStats]]) -> dict[str, dict[str, float]]:
    """Merge the numbers of all servers.

    Args:
        servers: the numbers of each server, by tool.

    Returns:
        By tool, without the tools that had no call: `calls`, a count for each outcome that
        occurred, `cached` if any, and the 50th, 95th and 99th percentile of running (`p50_s`, ...)
        and of waiting (`wait_p50_s`, ...), in seconds.
    """
    parts_of: dict[str, list[ToolStats]] = {}
    for server in servers:
        for name, stats in server.items():
            parts_of.setdefault(name, []).append(stats)
    return {
        name: _summary(parts)
        for name, parts in parts_of.items()
        if any(part.outcomes for part in parts)
    }


def _summary(parts: list[ToolStats]) -> dict[str, float]:
    outcomes: Counter[ToolStatus] = Counter()
    seconds: list[float] = []
    waits: list[float] = []
    for part in parts:
        outcomes += part.outcomes
        seconds += part.seconds
        waits += part.waits
    # A call that was refused for a full queue is asked again later, and counts then.
    numbers = {"calls": float(outcomes.total() - outcomes[ToolStatus.OVERLOADED])}
    for status, count in sorted(outcomes.items()):
        numbers[str(status)] = float(count)
    cached = sum(part.cached for part in parts)
    if cached:
        numbers["cached"] = float(cached)
    return numbers | _percentiles("", seconds) | _percentiles("wait_", waits)


def _percentiles(prefix: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, PERCENTILES)
    return {f"{prefix}p{q}_s": float(value) for q, value in zip(PERCENTILES, found, strict=True)}
