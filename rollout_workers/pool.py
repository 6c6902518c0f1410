"""The driver's view of the rollout workers: questions and forks go in, groups and resamples come out, whatever happens to a worker.

Everything runs on one event loop in a thread of its own, so that generation goes on while the driver trains. All rollouts of
a question and their forks go to one worker, whose engine holds the prefix, unless it is overloaded or gone. What a lost
worker had in flight is run again elsewhere with the same seeds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from rollout_workers.fleet import (
    START_DEADLINE_S,
    Fleet,
    Log,
    Worker,
    WorkersFailed,
    answer,
    no_log,
    within,
)
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    Group,
    PolicySegment,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
)
from rollout_workers.worker import RolloutWorker

T = TypeVar("T")
OVERLOAD = 1.25
"""A fork leaves the engine with its prefix where that has no slot left and more than this times the mean load (consistent hashing with
bounded loads)."""
BACKLOG = 2.0
"""Rollouts that a worker is given at most, over its concurrency: a group counts until its longest rollout ends, when most
of the others have long left their slots."""
_SCORING_MARGIN_S = 120.0


class _Lost(Exception):
    """The worker was lost before it answered."""


class RolloutPool:
    """Methods are blocking, for the driver's thread, except the coroutines `group` and `fork`, which run on `loop`."""

    def __init__(
        self,
        settings: WorkerSettings,
        actor_class: type = RolloutWorker,
        log: Log = no_log,
    ) -> None:
        """Starts the workers; nothing waits for them yet. `actor_class` stands in for RolloutWorker in tests without an engine.

        Raises ValueError where Ray cannot place the workers.
        """
        config = settings.config
        self.loop = asyncio.new_event_loop()
        self._fleet = Fleet(
            lambda options, worker_id: (
                ray.remote(actor_class).options(**options).remote(worker_id, settings)
            ),
            config,
            self._place_waiting,
            log,
        )
        self._config = config
        self._log = log
        self._waiting: deque[tuple[int, asyncio.Future[Worker]]] = deque()
        self._tokens: SpecialTokens | None = None
        self._counts: Counter[str] = Counter()
        self._engine_stats: dict[int, dict[str, float]] = {}
        threading.Thread(target=self.loop.run_forever, daemon=True, name="rollout-pool").start()
        self.loop.call_soon_threadsafe(self._fleet.start)

    @property
    def workers(self) -> list[Any]:
        """Handles of the workers that serve, in the order of their places."""
        return [
            worker.actor for worker in sorted(self._fleet.serving, key=lambda worker: worker.place)
        ]

    def join_with(self, bring: Callable[[Any], None]) -> None:
        """`bring(handle)` gives a replacement the current policy before it serves; it may block."""
        self._fleet.on_join = bring

    def ready(self) -> SpecialTokens:
        """Wait until every engine serves. Raises what a worker's start raised, or TimeoutError."""
        if self._tokens is None:
            self._tokens = self.run(self._fleet.ready()).result(START_DEADLINE_S + 10)
        return self._tokens

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the pool's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def check(self) -> None:
        """Ask every worker for a sign of life; those without one serve no more when this returns, and are being replaced."""
        self.run(self._fleet.check()).result(2 * self._config.health_s + 60)

    def rollout(
        self,
        questions: Sequence[Question],
        step: int,
        n: int | None = None,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Iterator[Group]:
        """Groups in order of completion; `evaluating`: with the tools that evaluations alone offer.

        Raises WorkersFailed where too many workers were lost, or what a worker's code raised.
        """
        self.ready()
        futures = [
            self.run(self.group(question, step, n, temperature=temperature, evaluating=evaluating))
            for question in questions
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()[0]
        finally:
            for future in futures:
                future.cancel()

    async def group(
        self,
        question: Question,
        step: int,
        n: int | None = None,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> tuple[Group, Any]:
        """The n scored rollouts of a question, and the object reference they came in (for another actor to read).

        A rollout that infrastructure cut short, retries included, has no reward. Raises WorkersFailed, or what the worker's code raised.
        """
        n = n or self._config.n
        while True:
            worker = await self._any(n)
            try:
                group, reference = await self._ask(
                    worker,
                    n,
                    "rollout",
                    question,
                    n,
                    step,
                    temperature=temperature,
                    evaluating=evaluating,
                )
                await self._trust(worker, question, group, n)
                return group, reference
            except _Lost:
                self._counts["requeued"] += 1
                self._log("requeued", question=question.id, step=step, worker=worker.id)

    async def fork(self, group: Group, request: ForkRequest, step: int) -> Resample:
        """K scored continuations of a rollout's first `prefix_tokens` response tokens; see `RolloutWorker.fork`. Raises as `group`."""
        k = request.k
        source = next(t for t in group.rollouts if t.rollout == request.rollout)
        source = replace(source, segments=frozen_prefix(source, request.prefix_tokens))
        while True:
            worker = self._home(group.worker, k) or await self._any(k)
            self._counts["forks"] += 1
            self._counts["forks_home"] += worker.id == group.worker
            try:
                return (
                    await self._ask(
                        worker,
                        k,
                        "fork",
                        group.question,
                        source,
                        request,
                        step,
                    )
                )[0]
            except _Lost:
                self._counts["requeued"] += 1
                self._log(
                    "fork requeued",
                    question=group.question.id,
                    step=step,
                    worker=worker.id,
                    rollout=request.rollout,
                )

    def take_stats(self) -> dict[str, float]:
        """Since the last call: `requeued` questions and forks, `workers_lost`, `forks_home_share` (forks that ran on the engine with their
        prefix), and of each engine `engine/<id>/generated_per_s`, `prompt_per_s` (computed, not cached), `idle_share` (no request), and
        its `queue_depth` now (rollouts that wait for a slot) and `slots`."""
        answers = self.run(self._worker_stats()).result(self._config.health_s + 60)
        counts, self._counts = self._counts, Counter()
        out = {"requeued": float(counts["requeued"]), "workers_lost": float(self._fleet.failures)}
        if counts["forks"]:
            out["forks_home_share"] = counts["forks_home"] / counts["forks"]
        for worker, now in answers.items():
            before = self._engine_stats.get(worker, {})
            since = {name: value - before.get(name, 0.0) for name, value in now.items()}
            seconds = since["seconds"] or 1.0
            out |= {
                f"engine/{worker}/generated_per_s": since["generated_tokens"] / seconds,
                f"engine/{worker}/prompt_per_s": (since["prompt_tokens"] - since["cached_tokens"])
                / seconds,
                f"engine/{worker}/idle_share": since["idle_seconds"] / seconds,
                f"engine/{worker}/queue_depth": now["queued"],
                f"engine/{worker}/slots": now["slots"],
            }
        self._engine_stats = answers
        return out

    def sleep(self) -> None:
        """Give the engines' memory to the learner (`rollout.colocated`); the weights are dropped. Nothing may be in flight."""
        self._all("sleep")

    def wake(self, tag: str) -> None:
        """Take back the memory of `weights`, then of `kv_cache`, in this order, with a weight update between."""
        self._all("wake", tag)

    def shutdown(self) -> None:
        """End engines and actors and give back their places; a worker that is dead or does not answer is killed."""
        self.run(self._fleet.close()).result(180)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _all(self, method: str, *arguments: Any) -> None:
        ray.get(
            [getattr(actor, method).remote(*arguments) for actor in self.workers],
            timeout=START_DEADLINE_S,
        )

    async def _worker_stats(self) -> dict[int, dict[str, float]]:
        workers = list(self._fleet.serving)
        asked = [
            within(worker.actor.engine_stats.remote(), self._config.health_s) for worker in workers
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return {
            worker.id: answer
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException)
        }

    async def _any(self, work: int) -> Worker:
        """The least loaded worker, when it has room; questions wait in the order they came."""
        if self._fleet.failed:
            raise self._fleet.failed
        future: asyncio.Future[Worker] = self.loop.create_future()
        self._waiting.append((work, future))
        self._place_waiting()
        return await future

    def _place_waiting(self) -> None:
        while self._waiting:
            work, future = self._waiting[0]
            if future.done():  # cancelled
                self._waiting.popleft()
                continue
            if self._fleet.failed:
                self._waiting.popleft()
                future.set_exception(WorkersFailed(str(self._fleet.failed)))
                continue
            serving = [worker for worker in self._fleet.serving if not worker.lost.done()]
            if not serving:
                return
            worker = min(serving, key=lambda worker: (worker.load, worker.place))
            if worker.load >= BACKLOG * self._config.concurrency:
                return
            self._waiting.popleft()
            worker.load += work
            future.set_result(worker)

    def _home(self, worker_id: int, work: int) -> Worker | None:
        """The worker with the prefix, unless it is gone or overloaded. A fork waits for nothing: its prefix is in the cache now."""
        serving = [worker for worker in self._fleet.serving if not worker.lost.done()]
        for worker in serving:
            room = max(
                self._config.concurrency,
                OVERLOAD * sum(w.load for w in serving) / len(serving) + work,
            )
            if worker.id == worker_id and worker.load + work <= room:
                worker.load += work
                return worker
        return None

    async def _ask(
        self, worker: Worker, work: int, method: str, *arguments: Any, **options: Any
    ) -> tuple[Any, Any]:
        """The worker's answer and its reference; _Lost where the worker is lost first. `work` was added to its load."""
        config = self._config
        waves = math.ceil((worker.load + work) / config.concurrency_min)
        patience = (
            waves * (1 + config.retries) * (config.deadline_s + config.verify_s) + _SCORING_MARGIN_S
        )
        reference = getattr(worker.actor, method).remote(*arguments, **options)
        value = answer(reference)
        try:
            await asyncio.wait(
                [value, worker.lost], timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if not value.done():
                worker.lose(f"{method} gave no answer for {patience:.0f} s")
                raise _Lost
            try:
                return value.result(), reference
            except RayActorError as error:
                worker.lose(type(error).__name__)
                raise _Lost from error
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        finally:
            worker.load -= work
            self._place_waiting()

    async def _trust(self, worker: Worker, question: Question, group: Any, n: int) -> None:
        """Raises _Lost, and gives the worker up, where the answer is no group of this question, or an engine failed for good."""
        if not _sound(group, question, n):
            worker.lose(f"answered question {question.id} with garbage")
            raise _Lost
        if any(t.end is EndReason.ENGINE_FAILURE for t in group.rollouts):
            try:
                await within(worker.actor.ping.remote(), self._config.health_s)
            except (RayError, TimeoutError) as error:
                worker.lose(f"its engine failed: {type(error).__name__}")
                raise _Lost from error


def _sound(group: Any, question: Question, n: int) -> bool:
    return (
        isinstance(group, Group)
        and group.question.id == question.id
        and [t.rollout for t in group.rollouts] == list(range(n))
        and all(_sound_trajectory(t, question) for t in group.rollouts)
    )


def _sound_trajectory(trajectory: Trajectory, question: Question) -> bool:
    if trajectory.question_id != question.id or (
        trajectory.reward is not None and not math.isfinite(trajectory.reward)
    ):
        return False
    return all(
        len(s.token_ids) == len(s.logprobs)
        and bool(np.isfinite(s.logprobs).all())
        and bool((s.logprobs <= 0).all())
        for s in trajectory.segments
        if isinstance(s, PolicySegment)
    )
