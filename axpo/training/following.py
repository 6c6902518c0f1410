"""Follow one question: its rollouts, the resampler's decision, the forks it asks for.

Each question is a task of its own on the pool's loop. It waits for no other question, except for
the budget: the resampler may keep a question until it has seen others of its batch. A decision may
also ask for forks of earlier questions of the batch, which go to the engine at once.

With `resampler.schedule: carry` a group does not wait for its forks. They go on when the question
is finished, and the flow hands them out with the next batch (`carrying.py`).
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from axpo.config import Recipe
from axpo.texts import one_line
from axpo.training.in_flight import (
    Batch,
    CarriedForks,
    Fork,
    Prefix,
    QuestionInFlight,
    in_credit_order,
)
from resampler.client import ResamplerClient
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


@dataclass(frozen=True)
class _Source:
    """The group that is forked."""

    group: Group
    batch: int  # its number
    may_start: asyncio.Event = field(default_factory=asyncio.Event)  # the engines serve


class Following:
    """Take questions from their rollouts to their finished groups.

    The methods with an underscore run on the pool's loop, the others on the trainer's thread.
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
        self._carries = recipe.resampler.schedule.carries
        # Colocated engines sleep during the update that carried forks would run beside.
        self._engines_sleep = recipe.rollout.colocated
        self._held: list[asyncio.Event] = []
        # Kept here because the loop keeps only weak references to its tasks.
        self._late_offers: set[asyncio.Task[None]] = set()

    def start(self, batch: Batch, place: int) -> Future[Group | None]:
        """Start one question of a batch.

        The result is None if infrastructure broke it, or if the question is `unusable`.
        """
        return self._pool.run(self._follow(batch, place))

    def go_on(self, asked: QuestionInFlight, carried: CarriedForks) -> None:
        """Start forks again that a checkpoint found under way, at the next `let_forks_start`."""
        source = _Source(asked.finished_group, asked.batch)
        self._held.append(source.may_start)

        async def forks() -> tuple[Resample, ...]:
            started = [self._started(source, prefix) for prefix in carried.under_way]
            return await _outcomes(carried, started)

        asked.carried = carried
        carried.result = self._pool.run(forks())

    def let_forks_start(self) -> None:
        """Let forks go to the engines that were held until these have their policy."""
        self._pool.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        held, self._held = self._held, []
        for may_start in held:
            may_start.set()

    async def _follow(self, batch: Batch, place: int) -> Group | None:
        asked = batch.questions[place]
        asked.task = asyncio.current_task()
        try:
            if asked.aborted:
                return None
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
            if complete:
                self._abort_stragglers(batch)
            # A broken group is offered as lost, so that its batch's budget does not wait for it.
            if self._resamples:
                asked.group = group
                await self._offer(batch, place, reference if complete else None)
                # Until then a further fork may come.
                await asked.settled.wait()
                group = await self._with_forks(asked, group)
            return group if complete else None
        except UnusableQuestion as error:
            asked.unusable = one_line(str(error))
            self._log("unusable", question=asked.question.id, reason=asked.unusable)
            return None
        except asyncio.CancelledError:
            if not asked.aborted:
                raise
            return None
        finally:
            self._leave(batch, place)

    def _abort_stragglers(self, batch: Batch) -> None:
        """Note that one more question has its rollouts; abort the others if it was the last wanted.

        The trainer waits for what is in flight, and the resampler for all questions of its batch:
        both go on as if the others were lost.
        """
        batch.there += 1
        if batch.there != batch.wanted:
            return
        for other in batch.questions:
            if other.has_rollouts or other.unusable is not None or other.result.done():
                continue
            other.aborted = True
            # One that has not begun sees it when it does.
            if other.task is not None:
                other.task.cancel()

    async def _with_forks(self, asked: QuestionInFlight, group: Group) -> Group:
        """Return the group with what came of its forks, or with the sources that it carries."""
        if not self._carries:
            results = await asyncio.gather(*[fork.task for fork in asked.forks])
            there = [resample for resample in results if resample is not None]
            return replace(group, resamples=in_credit_order(there))
        if not asked.forks:
            return group
        # From here on they are not the question's: they go on when it is finished.
        forks, asked.forks = asked.forks, []
        asked.carried = CarriedForks(tuple(fork.prefix for fork in forks))
        asked.carried.result = self._pool.run(_outcomes(asked.carried, forks))
        return replace(group, carried=tuple(sorted({fork.prefix.source for fork in forks})))

    def _leave(self, batch: Batch, place: int) -> None:
        """Clean up after a question that is finished, failed or cancelled."""
        asked = batch.questions[place]
        asked.group = asked.task = None
        for fork in asked.forks:
            fork.task.cancel()
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
        decision = await self._resampler.offer(
            group, batch.number, place, len(batch.questions), batch.wanted
        )
        for candidate in decision.forks:
            source = batch.questions[candidate.group]
            if source.group is not None:  # else the question failed or was cancelled
                forked = _Source(source.group, batch.number)
                self._hold_back(forked.may_start)
                prefix = Prefix(candidate.rollout, candidate.prefix_tokens)
                source.forks.append(self._started(forked, prefix))
        for settled in decision.settled:
            batch.questions[settled].settled.set()

    def _hold_back(self, may_start: asyncio.Event) -> None:
        """Keep a fork from engines that are about to sleep."""
        if self._carries and self._engines_sleep:
            self._held.append(may_start)
        else:
            may_start.set()

    def _started(self, source: _Source, prefix: Prefix) -> Fork:
        return Fork(prefix, asyncio.create_task(self._fork(source, prefix)))

    async def _fork(self, source: _Source, prefix: Prefix) -> Resample | None:
        """Return the K scored continuations of a prefix.

        None, and counted, if infrastructure broke a continuation or if they agree on their call.
        """
        await source.may_start.wait()
        fields = {
            "question": source.group.question.id,
            "batch": source.batch,
            "rollout": prefix.source,
        }
        self._log("forked", **fields)
        resample = await self._continuations(source, prefix)
        fault = self._fault_of(resample)
        if fault is not None:
            self.faults.add(fault)
            self._log(fault, **fields)
            return None
        assert resample is not None
        # A budget that does not learn spares the resampler these messages.
        if self._config.budget.learns:
            self._resampler.learn(self._config.budget.outcome(source.group, resample))
        return resample

    async def _continuations(self, source: _Source, prefix: Prefix) -> Resample | None:
        """Run a fork; None if its deadline passed."""
        config = self._config
        request = ForkRequest(prefix.source, prefix.tokens, config.k, config.min_distinct_calls)
        try:
            async with asyncio.timeout(config.deadline_s):
                resample = await self._pool.fork(source.group, request, source.batch)
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


async def _outcomes(carried: CarriedForks, forks: Sequence[Fork]) -> tuple[Resample, ...]:
    """Wait for forks, note each as it comes, and return the resamples of all carried ones."""

    async def note(fork: Fork) -> None:
        carried.outcomes[fork.prefix] = await fork.task

    await asyncio.gather(*[note(fork) for fork in forks])
    return carried.back
