"""Times things side by side."""

from __future__ import annotations

import time
from collections.abc import Callable


def interleaved(repetitions: int, **runs: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each run, `repetitions` times.

    The runs take turns, so that what else the machine does falls on all of them, and every other round goes backwards: who comes
    second gains or loses by it in half of the rounds only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions):
        for name in list(runs)[:: -1 if repetition % 2 else 1]:
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds
