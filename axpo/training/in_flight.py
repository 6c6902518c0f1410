"""What is known of a question between the moment it is asked and the batch that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from learner.credit import informative
from rollout_workers.trajectory import Group, Question, Resample


@dataclass(eq=False)
class QuestionInFlight:
    """A question that was asked and is not trained on yet."""

    index: int  # in the task's order
    question: Question
    version: int  # of the policy that begins it
    result: Future[Group | None] = field(default_factory=Future)  # None: infrastructure broke it

    # These change on the pool's loop. The trainer's thread reads `has_rollouts` only.
    has_rollouts: bool = False  # its forks may not be there yet
    offered: bool = False  # the resampler was told that its rollouts are there, or lost
    group: Group | None = None  # its rollouts, as long as they may be forked
    forks: list[asyncio.Task[Resample | None]] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no further fork will come

    # Why it cannot be asked: its data is at fault. Set before its result, which is None then.
    unusable: str | None = None

    @property
    def complete(self) -> bool:
        """Return whether its group is there, with its forks."""
        result = self.result
        return result.done() and result.exception() is None and result.result() is not None

    @property
    def uninformative(self) -> bool:
        """Return whether its group is there and teaches nothing."""
        return self.complete and not informative(self.finished_group)

    @property
    def finished_group(self) -> Group:
        """Return its group, with its forks; only if `complete`."""
        group = self.result.result()
        assert group is not None
        return group


@dataclass(frozen=True)
class Batch:
    """The questions that are asked together: they share one budget of the resampler."""

    number: int  # counts the batches of a run; the seeds of the rollouts derive from it
    questions: Sequence[QuestionInFlight]
