"""What this process was busy with, and when: the pieces of a start."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """A piece of work; `start` and `stop` are seconds since the epoch."""

    what: str
    start: float
    stop: float


_spans: list[Span] = []


@contextmanager
def span(what: str) -> Iterator[None]:
    """Note a block as a piece of work of this process."""
    start = time.time()
    try:
        yield
    finally:
        _spans.append(Span(what, start, time.time()))


def spans(*_: object) -> list[Span]:
    """Return what was noted, in order of its start, after what the process did before it.

    Arguments are ignored, so that Ray can call this in an actor's process.
    """
    noted = sorted(_spans, key=lambda noted: noted.start)
    first = noted[0].start if noted else time.time()
    return [Span("python", process_start(), first), *noted]


def process_start() -> float:
    """Return when this process was started, in seconds since the epoch."""
    # Field 22 of /proc/self/stat, in ticks since boot. The name in field 2 may hold anything.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
