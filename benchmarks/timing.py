"""Time things side by side, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def interleaved(repetitions: int, **runs: Callable[[], object]) -> dict[str, list[float]]:
    """Return the seconds of each run, `repetitions` times.

    The runs take turns, and every other round goes backwards: a run that gains or loses by coming
    second does so in half of the rounds only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repetition in range(repetitions):
        for name in reversed(names) if repetition % 2 else names:
            _, took = timed(runs[name])
            seconds[name].append(took)
    return seconds


def medians(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Return the median of each, of runs that time themselves.

    They take turns; the first turn is a warm-up and does not count.

    Args:
        runs: each returns its seconds.
        repeats: turns that count.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """Return what `run` returns, and its seconds."""
    started = time.perf_counter()
    returned = run()
    return returned, time.perf_counter() - started
