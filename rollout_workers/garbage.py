"""Keep Python's search for garbage cycles from walking over a run's groups again and again.

Python looks through its young objects whenever 700 more containers were made than freed, and now
and then through all of them. A group of 8 rollouts has a few hundred containers, and a process that
imported torch or Ray has a million. So reading groups cost more in that search than in anything
else: unpickling the items of 512 groups took 0.13 ms a trajectory with it, and 0.03 ms without. It
found nothing, because groups are in no cycle: they are freed with their last reference.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS = 50_000
"""New containers after which Python looks through the young ones: those of about 100 groups."""


def pass_over_what_is_here() -> None:
    """Let this process look for cycles as often as ever, but never again at what is there now.

    For one that computes on a device: its graphs may be in cycles, which hold the device's memory
    until they are found.
    """
    gc.collect()
    gc.freeze()


def collect_rarely() -> None:
    """Let this process look for cycles rarely, and never again at what is there now."""
    pass_over_what_is_here()
    gc.set_threshold(ALLOCATIONS, *gc.get_threshold()[1:])


@contextmanager
def few_collections() -> Iterator[None]:
    """Do as `collect_rarely` does, within the block."""
    before = gc.get_threshold()
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
