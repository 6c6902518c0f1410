"""Questions in, finished groups out: nothing waits for anything but what it needs.

Each question is a task of its own on the pool's loop: its rollouts, then the resampler's word on its prefixes, then their forks, which
go to the engine at once, while other questions of the batch still generate. The trainer takes a batch when it can have one:

    synchronous   (max_staleness 0)  exactly the questions of the step, all of them by the policy that is updated
    asynchronous  (S >= 1)           the engines work on (S + 1) batches; a batch is whatever is finished, those first that would be
                                     more than S versions old in the next one. Where such a group is not finished, the trainer
                                     waits for it (`stale: wait`) or drops it (`stale: drop`)

So no group is trained on that was begun by a policy more than S updates older. A group that infrastructure broke keeps its place in
the batch and is dropped, counted and never padded.

With `dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) groups that teach nothing are set aside, and as many further questions are
asked as the batch lacks, round by round: each round is a batch of its own for the resampler's budget. In a synchronous run the questions
of a step then still follow from the outcomes alone, whichever group finishes first.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from axpo.config import Recipe
from axpo.tasks import Task
from axpo.training.cursor import Cursor, Kept
from learner.credit import informative
from resampler.online import Decision
from resampler.select import first_tool, tool_cost
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import (
    EndReason,
    Group,
    Question,
    Resample,
    Trajectory,
    recovered,
    stored,
)

DECISION_S = 300.0
"""Seconds for the resampler to answer: it computes for milliseconds."""


@dataclass(frozen=True)
class Taken:
    """A batch for the learner."""

    groups: list[Group]  # complete, with their resamples
    uninformative: list[Group]  # complete, set aside by dynamic sampling
    dropped: int  # questions that infrastructure broke
    stale: int  # questions dropped because they would have been too old
    forks_dropped: int  # resamples that infrastructure broke
    forks_collapsed: int  # prefixes given up because their continuations agreed on the call
    verifier_failures: int  # rollouts and continuations whose verifier failed
    staleness: dict[
        str, int
    ]  # question id -> updates between the policy that began it and the one that is updated

    @property
    def finished(self) -> list[Group]:
        """What the policy did, whether or not it is trained on: the groups that diagnostics are about."""
        return self.groups + self.uninformative


@dataclass(eq=False)
class _Ticket:
    """A question under way."""

    index: int  # in the task's order
    question: str
    version: int  # of the policy that begins it
    rolled: bool = False  # its rollouts are there, its forks may not be
    future: Future[Group | None] = field(default_factory=Future)  # None: infrastructure broke it

    @property
    def whole(self) -> bool:
        """Its group is there, with its forks."""
        return (
            self.future.done()
            and self.future.exception() is None
            and self.future.result() is not None
        )

    @property
    def dull(self) -> bool:
        """Its group is there and teaches nothing."""
        return self.whole and not informative(self.group)

    @property
    def group(self) -> Group:
        group = self.future.result()
        assert group is not None
        return group


@dataclass(eq=False)
class _Batch:
    """The questions that were asked together: the batch of the resampler's budget."""

    step: int
    questions: Sequence[Question]
    groups: dict[int, Group] = field(default_factory=dict)
    forks: dict[int, list[asyncio.Task[Resample | None]]] = field(default_factory=dict)
    settled: dict[int, asyncio.Event] = field(default_factory=dict)
    last_words: list[asyncio.Task[None]] = field(default_factory=list)


class Flow:
    """`feed` and `take` are for the trainer's thread. `cursor`: where an earlier process of the run stood."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        pool: RolloutPool,
        resampler: Any,
        cursor: Cursor = Cursor(),
        log: Log = lambda event, **fields: None,
    ) -> None:
        self._recipe, self._task, self._pool, self._resampler, self._log = (
            recipe,
            task,
            pool,
            resampler,
            log,
        )
        self._pending, self._next, self._batch = (
            list(cursor.pending),
            cursor.following,
            cursor.batch,
        )
        self._flying = [self._restored(kept) for kept in cursor.kept]
        self._done = threading.Condition()
        if cursor.history is not None:
            resampler.restore.remote(cursor.history).future().result(DECISION_S)
        self._forks_dropped = self._forks_collapsed = self._verifier_failures = 0

    @property
    def cursor(self) -> Cursor:
        """What a resume needs, between `take` and `feed`."""
        whole = [ticket for ticket in self._flying if ticket.whole]
        again = sorted(ticket.index for ticket in self._flying if ticket not in whole)
        kept = tuple(Kept(ticket.index, ticket.version, ticket.group) for ticket in whole)
        history = self._resampler.history.remote().future().result(DECISION_S)
        return Cursor(self._next, self._batch, (*again, *self._pending), kept, history)

    def feed(self, step: int) -> None:
        """Ask as many questions as the staleness bound allows, of the policy that the engines have: version `step`."""
        recipe = self._recipe
        self._ask(
            min(recipe.max_staleness + 1, recipe.steps - step) * recipe.questions_per_step
            - len(self._flying),
            step,
        )

    def take(self, step: int) -> Taken:
        """Wait for the batch that policy version `step` is updated with. Raises what a question's task raised, first of all."""
        size, extra = self._recipe.questions_per_step, self._recipe.extra_questions
        batch: list[_Ticket] = []
        stale: list[_Ticket] = []
        aside: list[_Ticket] = []
        while True:
            finished, late = self._finished(step, size - len(batch))
            dull = [ticket for ticket in finished if self._recipe.dynamic_sampling and ticket.dull]
            batch += [ticket for ticket in finished if ticket not in dull]
            stale, aside = stale + late, aside + dull
            asked = min(size - len(batch), extra) if dull else 0
            if not asked:
                break
            self._ask(asked, step)
            extra -= asked
        trained = sorted(
            (ticket for ticket in batch if ticket.whole), key=lambda ticket: ticket.index
        )
        broken = [ticket for ticket in batch if not ticket.whole]
        for ticket in trained:
            self._log("trained", question=ticket.question, step=step)
        for reason, tickets in (
            ("infrastructure", broken),
            ("stale", stale),
            ("uninformative", aside),
        ):
            for ticket in tickets:
                self._log("dropped", question=ticket.question, step=step, reason=reason)
        forks_dropped, forks_collapsed = self._forks_dropped, self._forks_collapsed
        verifier_failures = self._verifier_failures
        self._forks_dropped = self._forks_collapsed = self._verifier_failures = 0
        return Taken(
            groups=[ticket.group for ticket in trained],
            uninformative=[ticket.group for ticket in aside],
            dropped=len(broken),
            stale=len(stale),
            forks_dropped=forks_dropped,
            forks_collapsed=forks_collapsed,
            verifier_failures=verifier_failures,
            staleness={ticket.question: step - ticket.version for ticket in trained},
        )

    def close(self) -> None:
        """Give up what is in flight."""
        for ticket in self._flying:
            ticket.future.cancel()

    def _restored(self, kept: Kept) -> _Ticket:
        ticket = _Ticket(kept.index, kept.group.question.id, kept.version, rolled=True)
        info = self._task.train(kept.index).info  # the record has none
        ticket.future.set_result(
            replace(kept.group, question=replace(kept.group.question, info=info))
        )
        self._log(
            "dispatched",
            question=ticket.question,
            index=kept.index,
            version=kept.version,
            restored=True,
        )
        return ticket

    def _ask(self, questions: int, step: int) -> None:
        size = self._recipe.questions_per_step
        asked = [self._take_index() for _ in range(questions)]
        for start in range(0, len(asked), size):
            indices = asked[start : start + size]
            batch = _Batch(self._batch, [stored(self._task.train(index)) for index in indices])
            self._batch += 1
            for place, (index, question) in enumerate(zip(indices, batch.questions, strict=True)):
                ticket = _Ticket(index, question.id, step)
                self._flying.append(ticket)
                self._log(
                    "dispatched", question=question.id, index=index, step=batch.step, version=step
                )
                ticket.future = self._pool.run(self._question(batch, place, ticket))
                ticket.future.add_done_callback(self._notify)

    def _finished(self, step: int, size: int) -> tuple[list[_Ticket], list[_Ticket]]:
        """Wait for `size` finished questions, or all; returns the oldest of them and those given up because they are too old."""
        bound = self._recipe.max_staleness
        stale: list[_Ticket] = []
        with self._done:
            while True:
                finished = [ticket for ticket in self._flying if ticket.future.done()]
                for ticket in finished:
                    if error := ticket.future.exception():
                        raise error
                due = [
                    ticket
                    for ticket in self._flying
                    if ticket.version + bound <= step and not ticket.future.done()
                ]
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
        oldest = sorted(finished, key=lambda ticket: (ticket.version, ticket.index))[:size]
        self._flying = [ticket for ticket in self._flying if ticket not in oldest]
        return oldest, stale

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
            self._log(
                "finished", question=question.id, step=batch.step, worker=group.worker, whole=whole
            )
            self._count_faults(group.rollouts)
            if not offered:
                offered = True
                batch.groups[place] = group
                await self._offer(batch, place, reference if whole else None)
                await batch.settled.setdefault(place, asyncio.Event()).wait()
                resamples = await asyncio.gather(*batch.forks.get(place, ()))
                group = replace(
                    group,
                    resamples=tuple(
                        sorted(filter(None, resamples), key=lambda r: (r.source, r.prefix_tokens))
                    ),
                )
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
            fork = asyncio.create_task(
                self._fork(batch, chosen.group, chosen.rollout, chosen.prefix_tokens)
            )
            batch.forks.setdefault(chosen.group, []).append(fork)
        for settled in decision.settled:
            batch.settled.setdefault(settled, asyncio.Event()).set()

    async def _fork(
        self, batch: _Batch, place: int, rollout: int, prefix_tokens: int
    ) -> Resample | None:
        """The K scored continuations of a prefix. None, and counted, where infrastructure broke one or they agree on their call."""
        group, config = batch.groups.get(place), self._recipe.resampler
        if group is None:
            return None
        fields = {"question": group.question.id, "step": batch.step, "rollout": rollout}
        self._log("forked", **fields)
        try:
            async with asyncio.timeout(config.deadline_s):
                resample = await self._pool.fork(
                    group, rollout, prefix_tokens, config.k, batch.step, config.min_distinct_calls
                )
        except TimeoutError:
            resample = None
        self._count_faults(resample.continuations if resample else ())
        if resample is not None and not resample.continuations:
            self._forks_collapsed += 1
            self._log("fork collapsed", **fields)
            return None
        if (
            resample is None
            or len(resample.continuations) != config.k
            or any(t.reward is None for t in resample.continuations)
        ):
            self._forks_dropped += 1
            self._log("fork dropped", **fields)
            return None
        if config.adapts:
            source = next(t for t in group.rollouts if t.rollout == rollout)
            self._resampler.learn.remote(
                recovered(group, resample),
                first_tool(source),
                tool_cost(resample, config.call_costs),
            )
        return resample

    def _count_faults(self, trajectories: Sequence[Trajectory]) -> None:
        """Verifiers that failed: each is counted, and why is logged."""
        for trajectory in trajectories:
            if trajectory.end is EndReason.VERIFIER_FAILURE:
                self._verifier_failures += 1
                self._log(
                    "verifier failed",
                    question=trajectory.question_id,
                    rollout=trajectory.rollout,
                    fault=trajectory.stats.fault,
                )
