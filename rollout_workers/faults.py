"""Faults on purpose: a plan says what breaks, and at which visit of which named point.

Points of a rollout worker: `turn` (before a turn is sampled), `tool` (before a tool call),
`weights` (before a bucket of a weight update is loaded), `ping`. A worker is named by its id, so
the one that replaces it is spared. Without a plan a point costs one comparison.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["kill", "freeze", "raise", "hang"]
KINDS: tuple[Kind, ...] = get_args(Kind)
POINTS = ("turn", "tool", "weights", "ping")


class InjectedFault(Exception):
    """Raised at a point by a plan."""


@dataclass(frozen=True)
class Fault:
    """One thing that breaks."""

    worker: int  # id
    point: str
    visit: int  # counts the worker's own visits of the point, from 1
    kind: Kind


class FaultPlan:
    """Count visits in this process, and break what the plan says.

    A pickled copy starts its own counts.
    """

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        """Plan these faults; raise ValueError if one is at a point that does not exist."""
        unknown = {fault.point for fault in faults} - set(POINTS)
        if unknown:
            raise ValueError(f"no fault points named {sorted(unknown)}; there are {POINTS}")
        self.faults = tuple(faults)
        self._visits: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type, tuple[tuple[Fault, ...]]]:
        return FaultPlan, (self.faults,)

    @classmethod
    def seeded(cls, seed: int, workers: int, count: int, visits: int = 20) -> FaultPlan:
        """Return a random plan, for tests.

        Args:
            seed: the same seed gives the same plan.
            workers: the faults happen to workers 0 to `workers` - 1.
            count: number of faults, of any kind and at any point.
            visits: they happen within the first `visits` visits.
        """
        rng = random.Random(seed)
        return cls([_random_fault(rng, workers, visits) for _ in range(count)])

    async def reach(self, point: str, worker: int) -> None:
        """Break what the plan says for this visit.

        So this may kill or freeze the process, raise InjectedFault, or never return.
        """
        if not self.faults:
            return
        # Visits are counted in this process, so a replacement starts at 1, under another id.
        self._visits[point] += 1
        here = (worker, point, self._visits[point])
        for fault in self.faults:
            if (fault.worker, fault.point, fault.visit) == here:
                await _break(fault)


def _random_fault(rng: random.Random, workers: int, visits: int) -> Fault:
    return Fault(
        worker=rng.randrange(workers),
        point=rng.choice(POINTS),
        visit=rng.randint(1, visits),
        kind=rng.choice(KINDS),
    )


async def _break(fault: Fault) -> None:
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault.kind == "raise":
        raise InjectedFault(f"{fault.point} of worker {fault.worker}, visit {fault.visit}")
    await asyncio.Event().wait()
