"""Talk to the resampler, which runs as a Ray actor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resampler.history import History, Outcome
from resampler.schedules import Decision
from rollout_workers.trajectory import Group

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

DEADLINE_S = 300.0
"""Seconds for the resampler to answer: it computes for milliseconds."""


class ResamplerClient:
    """Call the `Resampler` that runs as a Ray actor. Every wait has a deadline."""

    def __init__(self, actor: ActorHandle, deadline_s: float = DEADLINE_S) -> None:
        self.actor = actor
        self._deadline_s = deadline_s

    async def offer(
        self,
        group: Group | ObjectRef | None,
        batch: int,
        place: int,
        questions: int,
        trained: int | None = None,
    ) -> Decision:
        """Offer a finished group, and return what it leads to; see `Resampler.offer`.

        Args:
            group: the group, or a Ray reference to it; None if it was lost.
            batch: number of the batch.
            place: place of the question in the batch.
            questions: questions of the batch.
            trained: those that the budget is for; None: all.

        Raises:
            TimeoutError: the resampler did not answer within the deadline.
        """
        reference = self.actor.offer.remote(group, batch, place, questions, trained)
        # Other questions share this event loop: it must not block until the answer is there.
        answer = asyncio.wrap_future(reference.future())
        decision: Decision = await asyncio.wait_for(answer, self._deadline_s)
        return decision

    def learn(self, outcome: Outcome) -> None:
        """Report what came of a resampled prefix; does not wait."""
        self.actor.learn.remote(outcome)

    def history(self) -> History:
        """Return what a checkpoint keeps; waits, so not for the pool's event loop.

        Raises:
            TimeoutError: the resampler did not answer within the deadline.
        """
        history: History = self.actor.history.remote().future().result(self._deadline_s)
        return history

    def restore(self, history: History) -> None:
        """Make the resampler go on from the history of an earlier process of the run; waits.

        Raises:
            TimeoutError: the resampler did not answer within the deadline.
        """
        self.actor.restore.remote(history).future().result(self._deadline_s)
