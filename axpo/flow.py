"""Questions in, finished groups out: nothing waits for anything but what it needs.

Each question is a task of its own on the pool's loop: its rollouts, then the resampler's word on its prefixes, then their forks, which
go to the engine at once, while other questions of the batch still generate. The trainer takes a batch when it can have one:

    synchronous   (max_staleness 0)  exactly the questions of the step, all of them by the policy that is updated
    asynchronous  (S >= 1)           the engines work on (S + 1) batches; a batch is whatever is finished, those first that would be
                                     more than S versions old in the next one. Where such a group is not finished, the trainer
                                     waits for it (`stale: wait`) or drops it (`stale: drop`)

So no group is trained on that was begun by a policy more than S updates older. A group that infrastructure broke keeps its place in
the batch and is dropped, counted and never padded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from axpo.config import Recipe
from axpo.evaluate import stored
from axpo.tasks import Task
from resampler.online import Decision
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import EndReason, Group, Question, Resample, Trajectory

DECISION_S = 300.0
"""Seconds for the resampler to answer: it computes for milliseconds."""


@dataclass(frozen=True)
class Taken:
    """A batch for the learner."""

    groups: list[Group]  # complete, with their resamples
    dropped: int  # questions that infrastructure broke
    stale: int  # questions dropped because they would have been too old
    forks_dropped: int  # resamples that infrastructure broke
    verifier_failures: int  # rollouts and continuations whose verifier failed
    staleness: dict[str, int]  # question id -> updates between the policy that began it and the one that is updated


@dataclass(eq=False)
class _Ticket:
    """A question under way."""

    index: int  # in the task's order
    question: str
    version: int  # of the policy that begins it
    rolled: bool = False  # its rollouts are there, its forks may not be
    future: Future[Group | None] = field(default_factory=Future)  # None: infrastructure broke it


@dataclass(eq=False)
class _Batch:
    """The questions that one `feed` sent together: the batch of the resampler's budget."""

    step: int
    questions: Sequence[Question]
    groups: dict[int, Group] = field(default_factory=dict)
    forks: dict[int, list[asyncio.Task[Resample | None]]] = field(default_factory=dict)
    settled: dict[int, asyncio.Event] = field(default_factory=dict)
    last_words: list[asyncio.Task[None]] = field(default_factory=list)


class Flow:
    """`feed` and `take` are for the trainer's thread. `pending` are questions of an earlier process that come first."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        pool: RolloutPool,
        resampler: Any,
        first: int = 0,
        pending: Sequence[int] = (),
        following: int | None = None,
        log: Log = lambda event, **fields: None,
    ) -> None:
        """`first` and `following`: the step, and the question after those pending, to go on with."""
        self._recipe, self._task, self._pool, self._resampler, self._log = recipe, task, pool, resampler, log
        self._pending = list(pending)
        self._next = first * recipe.questions_per_step if following is None else following
        self._batches = count(first)
        self._flying: list[_Ticket] = []
        self._done = threading.Condition()
        self._forks_dropped = 0
        self._verifier_failures = 0

    @property
    def cursor(self) -> dict[str, Any]:
        """What a resume needs: the next question, and those asked but not yet trained on."""
        return {"following": self._next, "pending": sorted(ticket.index for ticket in self._flying) + self._pending}

    def feed(self, step: int) -> None:
        """Ask as many questions as the staleness bound allows, of the policy that the engines have: version `step`."""
        recipe = self._recipe
        ahead = min(recipe.max_staleness + 1, recipe.steps - step) * recipe.questions_per_step
        asked = [self._take_index() for _ in range(ahead - len(self._flying))]
        for start in range(0, len(asked), recipe.questions_per_step):
            indices = asked[start : start + recipe.questions_per_step]
            batch = _Batch(next(self._batches), [stored(self._task.train(index)) for index in indices])
            for place, (index, question) in enumerate(zip(indices, batch.questions, strict=True)):
                ticket = _Ticket(index, question.id, step)
                self._flying.append(ticket)
                self._log("dispatched", question=question.id, index=index, step=batch.step, version=step)
                ticket.future = self._pool.run(self._question(batch, place, ticket))
                ticket.future.add_done_callback(self._notify)

    def take(self, step: int) -> Taken:
        """Wait for the batch that policy version `step` is updated with. Raises what a question's task raised, first of all."""
        size, bound = self._recipe.questions_per_step, self._recipe.max_staleness
        stale: list[_Ticket] = []
        with self._done:
            while True:
                finished = [ticket for ticket in self._flying if ticket.future.done()]
                for ticket in finished:
                    if error := ticket.future.exception():
                        raise error
                due = [ticket for ticket in self._flying if ticket.version + bound <= step and not ticket.future.done()]
                enough = len(finished) >= min(size, len(self._flying))
                if enough and self._recipe.stale == "drop":
                    # What waits for the resampler only is kept: the others of its batch are its stragglers, and they go.
                    stale += [ticket for ticket in due if not ticket.rolled]
                    due = [ticket for ticket in due if ticket.rolled]
                    self._flying = [ticket for ticket in self._flying if ticket not in stale]
                    for ticket in stale:
                        ticket.future.cancel()
                if enough and not due:
                    break
                self._done.wait()
        batch = sorted(sorted(finished, key=lambda ticket: (ticket.version, ticket.index))[:size], key=lambda ticket: ticket.index)
        for ticket in stale:
            self._log("dropped", question=ticket.question, step=step, reason="stale")
        self._flying = [ticket for ticket in self._flying if ticket not in batch]
        answers = [(ticket, ticket.future.result()) for ticket in batch]
        for ticket, group in answers:
            self._log(
                "trained" if group else "dropped", question=ticket.question, step=step, **({} if group else {"reason": "infrastructure"})
            )
        forks_dropped, self._forks_dropped = self._forks_dropped, 0
        verifier_failures, self._verifier_failures = self._verifier_failures, 0
        return Taken(
            groups=[group for _, group in answers if group],
            dropped=sum(group is None for _, group in answers),
            stale=len(stale),
            forks_dropped=forks_dropped,
            verifier_failures=verifier_failures,
            staleness={ticket.question: step - ticket.version for ticket, group in answers if group},
        )

    def close(self) -> None:
        """Give up what is in flight."""
        for ticket in self._flying:
            ticket.future.cancel()

    def _take_index(self) -> int:
        if self._pending:
            return self._pending.pop(0)
        self._next += 1
        return self._next - 1

    def _notify(self, _: Future[Group | None]) -> None:
        with self._done:
            self._done.notify_all()

    async def _question(self, batch: _Batch, place: int, ticket: _Ticket) -> Group | None:
        """A question's way through: rollouts, the resampler's word, forks. None where infrastructure broke a rollout."""
        question, offered = batch.questions[place], self._recipe.algorithm == "grpo"
        try:
            group, reference = await self._pool.group(question, batch.step)
            ticket.rolled = True
            whole = all(t.reward is not None for t in group.rollouts)
            self._log("finished", question=question.id, step=batch.step, worker=group.worker, whole=whole)
            self._count_faults(group.rollouts)
            if not offered:
                offered = True
                batch.groups[place] = group
                await self._offer(batch, place, reference if whole else None)
                await batch.settled.setdefault(place, asyncio.Event()).wait()
                resamples = await asyncio.gather(*batch.forks.get(place, ()))
                group = replace(group, resamples=tuple(sorted(filter(None, resamples), key=lambda resample: resample.source)))
            return group if whole else None
        finally:
            batch.groups.pop(place, None)
            for fork in batch.forks.pop(place, ()):
                fork.cancel()
            if not offered:  # the others of the batch must not wait for its word
                batch.last_words.append(asyncio.create_task(self._offer(batch, place, None)))

    async def _offer(self, batch: _Batch, place: int, group: Any) -> None:
        """Tell the resampler of a finished group (None: lost), and start the forks it asks for, of whichever group of the batch."""
        offer = self._resampler.offer.remote(group, batch.step, place, len(batch.questions))
        decision: Decision = await asyncio.wait_for(asyncio.wrap_future(offer.future()), DECISION_S)
        for chosen in decision.forks:
            fork = asyncio.create_task(self._fork(batch, chosen.group, chosen.rollout, chosen.prefix_tokens))
            batch.forks.setdefault(chosen.group, []).append(fork)
        for settled in decision.settled:
            batch.settled.setdefault(settled, asyncio.Event()).set()

    async def _fork(self, batch: _Batch, place: int, rollout: int, prefix_tokens: int) -> Resample | None:
        """The K scored continuations of a prefix; None where infrastructure broke one of them: dropped whole, and counted."""
        group, config = batch.groups.get(place), self._recipe.resampler
        if group is None:
            return None
        fields = {"question": group.question.id, "step": batch.step, "rollout": rollout}
        self._log("forked", **fields)
        try:
            async with asyncio.timeout(config.deadline_s):
                resample = await self._pool.fork(group, rollout, prefix_tokens, config.k, batch.step)
        except TimeoutError:
            resample = None
        self._count_faults(resample.continuations if resample else ())
        if resample is None or len(resample.continuations) != config.k or any(t.reward is None for t in resample.continuations):
            self._forks_dropped += 1
            self._log("fork dropped", **fields)
            return None
        return resample

    def _count_faults(self, trajectories: Sequence[Trajectory]) -> None:
        """Verifiers that failed: each is counted, and why is logged."""
        for trajectory in trajectories:
            if trajectory.end is EndReason.VERIFIER_FAILURE:
                self._verifier_failures += 1
                self._log("verifier failed", question=trajectory.question_id, rollout=trajectory.rollout, fault=trajectory.stats.fault)
