"""The driver's view of the rollout workers: questions and forks in, groups and resamples out.

Whatever happens to a worker, the driver gets its groups. Everything runs on one event loop in a
thread of its own, so that generation goes on while the driver trains. All rollouts of a question
and their forks go to one worker, whose engine holds the prefix, unless it is overloaded or gone.
What a lost worker had in flight is run again elsewhere with the same seeds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from axpo.spans import Span
from rollout_workers import deadline
from rollout_workers.causes import cause_of
from rollout_workers.client import START_DEADLINE_S, as_future, cancel
from rollout_workers.fleet import Fleet, Log, Worker, no_log
from rollout_workers.handing_over import actor_of, with_references
from rollout_workers.importing import has_imported
from rollout_workers.places import Places
from rollout_workers.routing import Router
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.soundness import is_sound
from rollout_workers.trajectory import (
    EndReason,
    Group,
    Question,
    Resample,
    SpecialTokens,
    UnusableQuestion,
    frozen_prefix,
    stored,
)
from rollout_workers.worker import RolloutWorker

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

T = TypeVar("T")
_SCORING_MARGIN_S = 120.0
_READ_S = 600.0
POLL_S = 0.1
READERS = 4
"""Threads that read images. Pillow decodes and scales without Python's lock."""


class _Lost(Exception):
    """The worker was lost before it answered."""


class RolloutPool:
    """Start workers, and ask them for groups and resamples.

    Methods block and are for the driver's thread, except the coroutines `group` and `fork`, which
    run on `loop`.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        actor_class: type = RolloutWorker,
        log: Log = no_log,
        places: Places | None = None,
    ) -> None:
        """Start the workers; nothing waits for them yet.

        Args:
            settings: what all workers share.
            actor_class: stands in for RolloutWorker in tests without an engine.
            log: takes what happens to workers and questions.
            places: of the workers; None: they reserve their own.

        Raises:
            ValueError: if Ray cannot place the workers.
        """
        self.loop = asyncio.new_event_loop()
        self._readers = ThreadPoolExecutor(READERS, "image-reader")
        self._settings = settings
        self._actor_class = actor_class
        self._config = settings.config
        self._log = log
        self._fleet = Fleet(self._start, settings.config, log, places)
        self._router = Router(self._fleet, settings.config.concurrency)
        self._tokens: SpecialTokens | None = None
        self._counts: Counter[str] = Counter()
        self._engine_stats: dict[int, dict[str, float]] = {}  # by worker, at the last `take_stats`
        threading.Thread(target=self.loop.run_forever, daemon=True, name="rollout-pool").start()
        self.loop.call_soon_threadsafe(self._fleet.start)

    @property
    def workers(self) -> list[ActorHandle]:
        """Actor handles of the workers that serve, in the order of their places."""
        workers = sorted(self._fleet.serving, key=lambda worker: worker.place)
        return [worker.client.actor for worker in workers]

    def join_with(self, bring: Callable[[ActorHandle], None]) -> None:
        """Let `bring(handle)` give a replacement the current policy before it serves.

        It may block. It raises `rollout_workers.fleet.Asleep` if it must be called again when the
        engines have woken.
        """
        self._fleet.on_join = bring

    def ready(self) -> SpecialTokens:
        """Wait until every engine serves; raise what a worker's start raised, or TimeoutError."""
        if self._tokens is None:
            self._tokens = self.run(self._fleet.ready()).result(START_DEADLINE_S + 10)
        return self._tokens

    def imported(self, seconds: float) -> None:
        """Return when the first worker of each place has imported its packages.

        Also if one of them is lost or cannot start, or after so many seconds: `ready` tells.
        """
        until = time.monotonic() + seconds
        waiting = set(range(self._config.workers))
        while waiting and not self._fleet.any_is_settled() and time.monotonic() < until:
            waiting = {worker for worker in waiting if not has_imported(worker)}
            time.sleep(POLL_S)

    def start_spans(self) -> dict[int, list[Span]]:
        """Return what the worker in each place did until now, and when."""
        workers = list(self._fleet.serving)

        async def ask() -> list[list[Span]]:
            return await asyncio.gather(*[worker.client.start_spans() for worker in workers])

        answers = self.run(ask()).result(self._config.health_s + 60)
        return {worker.place: spans for worker, spans in zip(workers, answers, strict=True)}

    def run(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the pool's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def check(self) -> None:
        """Ask every worker for a sign of life.

        Those without one serve no more when this returns, and are being replaced.
        """
        self.run(self._fleet.check()).result(2 * self._config.health_s + 60)

    def fail(self, why: str) -> None:
        """Give all workers up: whoever waits for a group raises WorkersFailed."""
        self.loop.call_soon_threadsafe(self._fleet.fail, why)

    def rollout(
        self,
        questions: Sequence[Question],
        step: int,
        n: int | None = None,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Iterator[Group]:
        """Yield the groups of questions as they finish.

        Args:
            questions: what is asked.
            step: counts into the seeds.
            n: rollouts a question; the recipe's if None.
            temperature: of sampling; the recipe's if None.
            evaluating: offer the tools of evaluations too.

        Raises:
            UnusableQuestion: if one of them cannot be asked.
            WorkersFailed: if too many workers were lost.
            Exception: what a worker's code raised.
        """
        outcomes = self.outcomes(questions, step, n, temperature=temperature, evaluating=evaluating)
        for outcome in outcomes:
            if isinstance(outcome, UnusableQuestion):
                raise outcome
            yield outcome

    def outcomes(
        self,
        questions: Sequence[Question],
        step: int,
        n: int | None = None,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Iterator[Group | UnusableQuestion]:
        """Yield what became of questions; as `rollout`, but one that cannot be asked is yielded."""
        # A worker's start that fails is raised here, not by every question.
        self.ready()
        asked = [
            self.group(question, step, n, temperature=temperature, evaluating=evaluating)
            for question in questions
        ]
        waiting = {self.run(coroutine) for coroutine in asked}
        try:
            for future in concurrent.futures.as_completed(list(waiting)):
                # What was yielded is not kept here: a group has the images of its observations.
                waiting.remove(future)
                error = future.exception()
                yield error if isinstance(error, UnusableQuestion) else future.result()[0]
        finally:
            # Whoever stops iterating does not want the others.
            for future in waiting:
                future.cancel()

    async def group(
        self,
        question: Question,
        step: int,
        n: int | None = None,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> tuple[Group, ObjectRef[Group]]:
        """Return the scored rollouts of a question; the arguments are those of `rollout`.

        A rollout that infrastructure cut short, retries included, has no reward. Lazy images are
        read when a worker has room for the question: a few questions ahead of their first request,
        and in threads.

        Returns:
            The group, whose tool images are references, and the object reference it came in, for
            another actor to read. That one has no images.

        Raises:
            UnusableQuestion: an image cannot be read, or the prompt does not fit the context.
            WorkersFailed: if too many workers were lost.
            Exception: what the worker's code raised.
        """
        n = n or self._config.n
        while True:
            worker = await self._router.least_loaded(n)
            question = await self._read(worker, question, n)
            reference, *images = worker.client.rollout(
                question, n, step, temperature=temperature, evaluating=evaluating
            )
            try:
                answer = await self._answer(worker, n, reference, "rollout")
                group = await self._trusted(worker, question, answer, n)
                return replace(group, rollouts=with_references(group.rollouts, images)), reference
            except UnusableQuestion as error:
                # Without the traceback that Ray adds.
                raise getattr(error, "cause", error) from None
            except _Lost:
                self._counts["requeued"] += 1
                self._log("requeued", question=question.id, batch=step, worker=worker.id)

    async def fork(self, group: Group, request: ForkRequest, step: int) -> Resample:
        """Return the scored continuations of a prefix; see `RolloutWorker.fork`.

        Args:
            group: the source's.
            request: which prefix, and how many continuations.
            step: counts into the seeds.

        Raises:
            WorkersFailed: if too many workers were lost.
            Exception: what the worker's code raised.
        """
        source = next(t for t in group.rollouts if t.rollout == request.rollout)
        # What follows the prefix is not sent.
        source = replace(source, segments=frozen_prefix(source, request.prefix_tokens))
        while True:
            # The engine with the prefix serves it from its cache; any other computes it again.
            worker = self._router.home(group.worker, request.k)
            worker = worker or await self._router.least_loaded(request.k)
            self._counts["forks"] += 1
            self._counts["forks_home"] += worker.id == group.worker
            reference, *images = worker.client.fork(group.question, source, request, step)
            try:
                resample = await self._answer(worker, request.k, reference, "fork")
                continuations = with_references(resample.continuations, images)
                return replace(resample, continuations=continuations)
            except _Lost:
                self._counts["requeued"] += 1
                self._log(
                    "fork requeued",
                    question=group.question.id,
                    batch=step,
                    worker=worker.id,
                    rollout=request.rollout,
                )

    def take_stats(self) -> dict[str, float]:
        """Return what happened since the last call.

        Returns:
            `requeued`: questions and forks that were run again; `workers_lost`, since the start;
            `forks_home_share`: the share of forks that ran on the engine with their prefix. Of
            each engine `engine/<id>/generated_per_s`, `prompt_per_s` (computed, not cached) and
            `idle_share` (without a request), and, as it is now, `queue_depth` (rollouts that wait
            for a slot) and `slots`.
        """
        engines = self.run(self._worker_stats()).result(self._config.health_s + 60)
        counts, self._counts = self._counts, Counter()
        # Rates are those since the last look at the counts of an engine.
        stats = {
            "requeued": float(counts["requeued"]),
            "workers_lost": float(self._fleet.failures),
        }
        if counts["forks"]:
            stats["forks_home_share"] = counts["forks_home"] / counts["forks"]
        for worker, now in engines.items():
            rates = _engine_rates(now, self._engine_stats.get(worker, {}))
            stats |= {f"engine/{worker}/{name}": value for name, value in rates.items()}
        self._engine_stats = engines
        return stats

    def sleep(self) -> None:
        """Give the engines' memory to the learner (`rollout.colocated`).

        Nothing may be in flight. A worker that is lost is replaced when the others have woken. One
        that replaces another and is still loading is waited for, and sleeps too.
        """
        self.run(self._fleet.make_room()).result(START_DEADLINE_S + 60)
        self._wait_for_all([worker.client.sleep() for worker in list(self._fleet.loaded)])

    def wake(self, tag: str) -> None:
        """Take back the memory of `weights`, then that of `kv_cache`.

        The weight update goes between the two.
        """
        self._wait_for_all([worker.client.wake(tag) for worker in list(self._fleet.loaded)])
        if tag == "kv_cache":
            self.loop.call_soon_threadsafe(self._fleet.has_room.set)

    def shutdown(self) -> None:
        """End engines and actors, and give back their places.

        A worker that is dead or does not answer is killed.
        """
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.run(self._fleet.close()).result(180)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _wait_for_all(self, calls: list[ObjectRef[None]]) -> None:
        """Wait until every worker has answered; one that is lost meanwhile is taken out."""
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=START_DEADLINE_S)
        lost = False
        for call in calls:
            try:
                ray.get(call, timeout=0)
            except RayActorError:
                lost = True
        if lost:
            self.check()

    async def _read(self, worker: Worker, question: Question, n: int) -> Question:
        """Return the question with its lazy images read and in Ray's object store.

        Args:
            worker: has been given the question's load.
            question: whatever its images are.
            n: the load.
        """
        if not question.is_lazy:
            return question
        reading = self.loop.run_in_executor(self._readers, stored, question)
        try:
            return await asyncio.wait_for(reading, _READ_S)
        except BaseException as error:  # cancelled, too: the worker gets no question
            self._router.done(worker, n)
            if isinstance(error, TimeoutError):
                raise UnusableQuestion(
                    f"question {question.id}: its images were not read within {_READ_S:g} s"
                ) from None
            raise

    async def _worker_stats(self) -> dict[int, dict[str, float]]:
        """Return the counts of every worker that answers, by its id."""
        workers = list(self._fleet.serving)
        asked = [worker.client.stats() for worker in workers]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return {
            worker.id: answer
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException)
        }

    def _start(self, options: dict[str, Any], worker_id: int) -> ActorHandle:
        """Create the actor of a worker."""
        actor_class = ray.remote(actor_of(self._actor_class)).options(**options)
        return actor_class.remote(worker_id, self._settings)

    async def _answer(
        self, worker: Worker, work: int, reference: ObjectRef[Any], method: str
    ) -> Any:
        """Return what a worker answers, and take the work off its load.

        Raises _Lost if the worker is lost first, or does not answer in a time that would be
        enough for all that it has to do.
        """
        patience = self._patience(worker, work)
        value = as_future(reference)
        try:
            await asyncio.wait(
                [value, worker.lost], timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            if not value.done():
                worker.lose(f"{method} gave no answer for {patience:.0f} s")
                raise _Lost
            try:
                return value.result()
            except RayActorError as error:
                worker.lose(cause_of(error))
                raise _Lost from error
        except asyncio.CancelledError:
            cancel(reference)
            raise
        finally:
            self._router.done(worker, work)

    def _patience(self, worker: Worker, work: int) -> float:
        """Return seconds that are enough for all that a worker has to do, wave after wave."""
        config = self._config
        waves = math.ceil((worker.load + work) / config.concurrency_min)
        attempts = 1 + config.retries
        attempt_s = deadline.ALL * config.deadline_s + config.verify_s
        return waves * attempts * attempt_s + _SCORING_MARGIN_S

    async def _trusted(self, worker: Worker, question: Question, answer: object, n: int) -> Group:
        """Return a worker's answer; give the worker up and raise _Lost if it cannot be trusted.

        That is so if the answer is no sound group of this question, or if the engine failed and
        gives no sign of life.
        """
        if not is_sound(answer, question, n):
            worker.lose(f"answered question {question.id} with garbage")
            raise _Lost
        # One failed request does not tell whether the engine is dead.
        if any(t.end is EndReason.ENGINE_FAILURE for t in answer.rollouts):
            try:
                await worker.client.ping()
            except (RayError, TimeoutError) as error:
                worker.lose(f"its engine failed: {cause_of(error)}")
                raise _Lost from error
        return answer


def _engine_rates(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Return what one engine did between two looks at its counts."""
    since = {name: value - before.get(name, 0.0) for name, value in now.items()}
    seconds = since["seconds"] or 1.0
    return {
        "generated_per_s": since["generated_tokens"] / seconds,
        "prompt_per_s": (since["prompt_tokens"] - since["cached_tokens"]) / seconds,
        "idle_share": since["idle_seconds"] / seconds,
        "queue_depth": now["queued"],
        "slots": now["slots"],
    }
