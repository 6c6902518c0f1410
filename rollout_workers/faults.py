"""Faults on purpose: a plan says at which visit of which named point what breaks. Without a plan a point costs one comparison.

Points of a rollout worker: `turn` (before a turn is sampled), `tool` (before a tool call), `weights` (before a bucket of a
weight update is loaded), `ping`. A worker is named by its id, so the one that replaces it is spared.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "freeze", "raise", "hang"]
POINTS = ("turn", "tool", "weights", "ping")


class InjectedFault(Exception):
    """Raised at a point by a plan."""


@dataclass(frozen=True)
class Fault:
    """`visit` counts a worker's own visits of the point, from 1."""

    worker: int
    point: str
    visit: int
    kind: Kind


class FaultPlan:
    """Counts visits in this process and breaks what the plan says; a pickled copy starts its own counts."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        if unknown := {f.point for f in faults} - set(POINTS):
            raise ValueError(f"no fault points named {sorted(unknown)}; there are {POINTS}")
        self.faults = tuple(faults)
        self._visits: Counter[str] = Counter()

    def __reduce__(self) -> tuple[type, tuple[tuple[Fault, ...]]]:
        return FaultPlan, (self.faults,)

    @classmethod
    def seeded(cls, seed: int, workers: int, count: int, visits: int = 20) -> FaultPlan:
        """`count` faults of any kind, at any point, within the first `visits` of workers 0 to `workers` - 1."""
        rng = random.Random(seed)
        kinds: tuple[Kind, ...] = ("kill", "freeze", "raise", "hang")
        return cls(
            [
                Fault(
                    rng.randrange(workers),
                    rng.choice(POINTS),
                    rng.randint(1, visits),
                    rng.choice(kinds),
                )
                for _ in range(count)
            ]
        )

    async def reach(self, point: str, worker: int) -> None:
        """Kill or freeze this process, raise InjectedFault, or never return, where the plan says so."""
        if not self.faults:
            return
        self._visits[point] += 1
        for fault in self.faults:
            if (fault.worker, fault.point, fault.visit) != (worker, point, self._visits[point]):
                continue
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.kind == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            if fault.kind == "raise":
                raise InjectedFault(f"{point} of worker {worker}, visit {fault.visit}")
            await asyncio.Event().wait()
