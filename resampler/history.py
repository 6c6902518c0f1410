"""Remember what finished batches and resamples taught: what budgets and triggers may read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

REMEMBERED = 64
"""Resampled prefixes that are remembered. With so many, a recovery rate of 1/8 is measured with a
standard error of 4 points."""

BATCHES = 4
"""Batches that are remembered. More would be smoother, but the policy's confidence moves."""

Entry: TypeAlias = tuple[int, float, float]
"""A candidate of a past batch: its depth, its score and its price."""


@dataclass(frozen=True)
class Outcome:
    """What came of one resampled prefix."""

    recovered: bool  # a continuation did better than the source
    tool: str = ""  # the one that the source called first
    cost_s: float = 0.0  # what the K continuations cost together, in seconds


@dataclass(frozen=True)
class PastBatch:
    """What a finished batch taught."""

    questions: int
    entries: tuple[Entry, ...] = ()  # of all its candidates, in the order they came in
    rewards: tuple[float, ...] = ()  # of all its scored rollouts, continuations excluded, sorted


@dataclass(frozen=True)
class History:
    """What a checkpoint keeps of a resampler: another one goes on from it as this one would."""

    recoveries: tuple[bool, ...] = ()  # of the last REMEMBERED resampled prefixes, oldest first
    past: tuple[PastBatch, ...] = ()  # the last BATCHES finished batches, oldest first
    costs: tuple[tuple[str, float], ...] = ()  # tool and seconds of the same prefixes

    @property
    def rewards(self) -> list[float]:
        """Return the rewards of the past batches' rollouts, continuations excluded."""
        return list(chain.from_iterable(batch.rewards for batch in self.past))

    def after(self, outcome: Outcome) -> History:
        """Return the history with one more resampled prefix."""
        recoveries = (*self.recoveries, outcome.recovered)[-REMEMBERED:]
        costs = (*self.costs, (outcome.tool, outcome.cost_s))[-REMEMBERED:]
        return replace(self, recoveries=recoveries, costs=costs)

    def after_batch(self, batch: PastBatch) -> History:
        """Return the history with one more finished batch."""
        return replace(self, past=(*self.past, batch)[-BATCHES:])
