"""Follow one question: its rollouts, the resampler's decision, the forks it asks for.

Each question is a task of its own on the pool's loop. It waits for no other question, except for
the budget: the resampler may keep a question until it has seen others of its batch. A decision may
also ask for forks of earlier questions of the batch, which go to the engine at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from axpo.config import Recipe
from axpo.texts import one_line
from axpo.training.in_flight import Batch, QuestionInFlight
from resampler.client import ResamplerClient
from resampler.select import Candidate
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import (
    EndReason,
    Group,
    Resample,
    Trajectory,
    UnusableQuestion,
)

if TYPE_CHECKING:
    from ray import ObjectRef


class FaultCounts:
    """Count what went wrong on the pool's loop, until the trainer's thread takes the counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, fault: str) -> None:
        """Count one more of a kind of fault."""
        with self._lock:
            self._counts[fault] += 1

    def take(self) -> Counter[str]:
        """Return the counts since the last call. A fault is in exactly one of its results."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts


class Following:
    """Take questions from their rollouts to their finished groups.

    All methods but `start` run on the pool's loop.
    """

    def __init__(
        self, recipe: Recipe, pool: RolloutPool, resampler: ResamplerClient, log: Log
    ) -> None:
        self.faults = FaultCounts()
        self._config = recipe.resampler
        self._resamples = recipe.algorithm == "axpo"
        self._pool = pool
        self._resampler = resampler
        self._log = log
        # Kept here because the loop keeps only weak references to its tasks.
        self._late_offers: set[asyncio.Task[None]] = set()

    def start(self, batch: Batch, place: int) -> Future[Group | None]:
        """Start one question of a batch.

        The result is None if infrastructure broke it, or if the question is `unusable`.
        """
        return self._pool.run(self._follow(batch, place))

    async def _follow(self, batch: Batch, place: int) -> Group | None:
        asked = batch.questions[place]
        try:
            group, reference = await self._pool.group(asked.question, batch.number)
            asked.has_rollouts = True
            complete = all(t.reward is not None for t in group.rollouts)
            self._log(
                "finished",
                question=asked.question.id,
                batch=batch.number,
                worker=group.worker,
                complete=complete,
            )
            self._count_verifier_failures(group.rollouts)
            # A broken group is offered as lost, so that its batch's budget does not wait for it.
            if self._resamples:
                asked.group = group
                await self._offer(batch, place, reference if complete else None)
                group = replace(group, resamples=await self._forks_of(asked))
            return group if complete else None
        except UnusableQuestion as error:
            asked.unusable = one_line(str(error))
            self._log("unusable", question=asked.question.id, reason=asked.unusable)
            return None
        finally:
            self._leave(batch, place)

    async def _forks_of(self, asked: QuestionInFlight) -> tuple[Resample, ...]:
        """Wait until no further fork will come, then for all forks; return what came of them."""
        await asked.settled.wait()
        results = await asyncio.gather(*asked.forks)
        resamples = [resample for resample in results if resample is not None]
        # Forks start in the order of the resampler's choice; credit sees them in a fixed order.
        resamples.sort(key=lambda resample: (resample.source, resample.prefix_tokens))
        return tuple(resamples)

    def _leave(self, batch: Batch, place: int) -> None:
        """Clean up after a question that is finished, failed or cancelled."""
        asked = batch.questions[place]
        asked.group = None
        for fork in asked.forks:
            fork.cancel()
        # The others of the batch must not wait for a question that will never be there.
        if self._resamples and not asked.offered:
            late_offer = asyncio.create_task(self._offer(batch, place, None))
            self._late_offers.add(late_offer)
            late_offer.add_done_callback(self._late_offers.discard)

    async def _offer(self, batch: Batch, place: int, group: ObjectRef | None) -> None:
        """Tell the resampler of a question's rollouts, and start the forks that it asks for.

        Args:
            batch: the questions that share the budget.
            place: the question's place in the batch.
            group: Ray's reference to the rollouts; None if they were lost.
        """
        batch.questions[place].offered = True
        decision = await self._resampler.offer(group, batch.number, place, len(batch.questions))
        for candidate in decision.forks:
            source = batch.questions[candidate.group]
            source.forks.append(asyncio.create_task(self._fork(batch, source, candidate)))
        for settled in decision.settled:
            batch.questions[settled].settled.set()

    async def _fork(
        self, batch: Batch, asked: QuestionInFlight, candidate: Candidate
    ) -> Resample | None:
        """Return the K scored continuations of a prefix.

        None, and counted, if infrastructure broke a continuation or if they agree on their call.
        """
        group = asked.group
        if group is None:  # the question failed or was cancelled
            return None
        fields = {
            "question": asked.question.id,
            "batch": batch.number,
            "rollout": candidate.rollout,
        }
        self._log("forked", **fields)
        resample = await self._continuations(batch, group, candidate)
        fault = self._fault_of(resample)
        if fault is not None:
            self.faults.add(fault)
            self._log(fault, **fields)
            return None
        assert resample is not None
        # A budget that does not learn spares the resampler these messages.
        if self._config.budget.learns:
            self._resampler.learn(self._config.budget.outcome(group, resample))
        return resample

    async def _continuations(
        self, batch: Batch, group: Group, candidate: Candidate
    ) -> Resample | None:
        """Run a fork; None if its deadline passed."""
        config = self._config
        request = ForkRequest(
            candidate.rollout, candidate.prefix_tokens, config.k, config.min_distinct_calls
        )
        try:
            async with asyncio.timeout(config.deadline_s):
                resample = await self._pool.fork(group, request, batch.number)
        except TimeoutError:
            return None
        self._count_verifier_failures(resample.continuations)
        return resample

    def _fault_of(self, resample: Resample | None) -> str | None:
        """Return why a resample cannot be trained on, as the event of the log; None if it can."""
        if resample is None:
            return "fork dropped"
        continuations = resample.continuations
        if not continuations:
            return "fork collapsed"
        unscored = any(t.reward is None for t in continuations)
        if unscored or len(continuations) != self._config.k:
            return "fork dropped"
        return None

    def _count_verifier_failures(self, trajectories: Sequence[Trajectory]) -> None:
        for trajectory in trajectories:
            if trajectory.end is EndReason.VERIFIER_FAILURE:
                self.faults.add("verifier failed")
                self._log(
                    "verifier failed",
                    question=trajectory.question_id,
                    rollout=trajectory.rollout,
                    fault=trajectory.stats.fault,
                )
