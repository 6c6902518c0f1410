"""What a person is told about the actors of a run, from their start to their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from axpo.placement import Plan
from axpo.training.losses import Losses
from axpo.training.starting import Starting
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool


def both(first: Log, second: Log) -> Log:
    """Return a log that hands every event to two others."""

    def log(event: str, **fields: Any) -> None:
        first(event, **fields)
        second(event, **fields)

    return log


class Telling:
    """Watch the start of a run's actors, then their losses."""

    def __init__(self, log: Log, say: Callable[[str], None], first: int, run: Path) -> None:
        """Stand before a log of events; the arguments are those of `Losses`."""
        self.starting = Starting(say)
        self._losses = Losses(log, say, first, run)

    def log(self, event: str, **fields: Any) -> None:
        """Take an event of the workers and questions, and pass it on."""
        self.starting.log(event, **fields)
        self._losses.log(event, **fields)

    def placed(self, plan: Plan) -> None:
        """Take where the actors will stand."""
        self.starting.placed(plan)
        self._losses.nodes = self.starting.nodes

    def has(self, pool: RolloutPool) -> None:
        """Take the pool, which is given up if its workers are lost in vain."""
        self._losses.stop = pool.fail
