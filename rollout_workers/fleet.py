"""The rollout workers of a pool: each in its place of a placement group, watched, and replaced.

A worker is replaced if it dies, stops answering, or is given up by who talks to it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from rollout_workers.causes import cause_of, root_of
from rollout_workers.client import START_DEADLINE_S, Process, WorkerClient, end_process
from rollout_workers.config import RolloutConfig
from rollout_workers.places import Places, Wanted
from rollout_workers.trajectory import SpecialTokens

if TYPE_CHECKING:
    from ray.actor import ActorHandle

PLACEMENT_S = 60.0
"""Seconds for Ray to place workers that stand alone."""

Log = Callable[..., None]
"""Takes an event's name and its fields."""


def no_log(event: str, **fields: Any) -> None:
    """Drop the event."""


class WorkersFailed(Exception):
    """More workers were lost than the recipe allows, or all at once."""


class Asleep(Exception):
    """The engines have given their memory away: a replacement joins when they have woken."""


@dataclass(eq=False)
class Worker:
    """One actor. A replacement is a new Worker with an id of its own, in the same place."""

    id: int
    place: int
    client: WorkerClient
    lost: asyncio.Future[str]  # why; set once
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # has loaded, or has ended
    retired: asyncio.Event = field(default_factory=asyncio.Event)  # lost, and serves no more
    load: int = 0  # rollouts and continuations in flight
    process: Process | None = None

    def lose(self, why: str) -> None:
        """Give this worker up: what it has in flight is run elsewhere, and it is replaced."""
        if not self.lost.done():
            self.lost.set_result(why)


class Fleet:
    """Keep one worker in each place. Lives on one event loop."""

    def __init__(
        self,
        make: Callable[[dict[str, Any], int], ActorHandle],
        config: RolloutConfig,
        log: Log = no_log,
        places: Places | None = None,
    ) -> None:
        """Take the places.

        Args:
            make: creates an actor from Ray's options and the worker's id.
            config: the recipe's `rollout`.
            log: takes what happens to the workers.
            places: of the workers; None: they reserve their own.

        Raises:
            ValueError: if Ray cannot place the workers.
        """
        self.loaded: list[Worker] = []
        """The workers whose engine has loaded: they hold its memory."""
        self.serving: list[Worker] = []
        """Those of them that have the current weights."""
        self.failures = 0
        self.failed: WorkersFailed | None = None
        self.on_change: Callable[[], None] = _nothing
        """Called when `serving` or `failed` has changed."""
        self.on_join: Callable[[ActorHandle], None] | None = None
        """Brings a replacement to the current policy before it serves; raises Asleep if it cannot.

        It blocks, so it is called in a thread.
        """
        self.has_room = asyncio.Event()
        """Whether a worker can start or join: not while the learner has the GPUs that it shares."""
        self.has_room.set()
        self._unsettled: set[Worker] = set()  # load or end: hold memory that they cannot give away
        self._make = make
        self._config = config
        self._log = log
        self._ids = itertools.count()
        self._places = places or _reserve(config)
        self._session = _ray_session()
        self._keepers: list[asyncio.Task[None]] = []
        self._first: list[asyncio.Future[SpecialTokens]] = []  # of each place: its first worker

    def start(self) -> None:
        """Start all workers side by side; call this on the loop."""
        loop = asyncio.get_running_loop()
        places = range(self._config.workers)
        self._first = [loop.create_future() for _ in places]
        self._keepers = [asyncio.create_task(self._keep(place)) for place in places]

    async def ready(self) -> SpecialTokens:
        """Wait until all workers serve; return what their `ready` gives.

        Raises what a worker's start raised, or TimeoutError.
        """
        # Shielded: a caller that gives up must not cancel what the keepers will set.
        all_serve = asyncio.gather(*[asyncio.shield(first) for first in self._first])
        return (await asyncio.wait_for(all_serve, START_DEADLINE_S))[0]

    def any_is_settled(self) -> bool:
        """Tell whether the first worker of a place serves, could not start or was lost."""
        return self.failures > 0 or any(first.done() for first in self._first)

    async def make_room(self) -> None:
        """Let no further worker start; return when none is loading or ending.

        An engine that loads takes the memory of a device, and can give it away only afterwards.
        """
        self.has_room.clear()
        while self._unsettled:
            await next(iter(self._unsettled)).settled.wait()

    async def check(self) -> None:
        """Ask every serving worker for a sign of life; those without one serve no more."""
        workers = list(self.serving)
        await asyncio.gather(*[self._ping(worker) for worker in workers])
        # A lost worker is taken out of service by its keeper.
        for worker in workers:
            if worker.lost.done():
                await worker.retired.wait()

    def fail(self, why: str) -> None:
        """Give all workers up: whoever waits for one raises WorkersFailed."""
        self.failed = WorkersFailed(why)
        self.on_change()

    async def close(self) -> None:
        """End engines and actors, and give their places back.

        A worker that is dead or does not answer is killed.
        """
        for keeper in self._keepers:
            keeper.cancel()
        workers = list(self.serving)
        if self._session_ended():
            await asyncio.gather(*self._keepers, return_exceptions=True)
            return
        ended = [asyncio.ensure_future(worker.client.shutdown()) for worker in workers]
        await asyncio.gather(*ended, *self._keepers, return_exceptions=True)
        for worker in workers:
            worker.client.kill()
        self._places.release()

    async def _keep(self, place: int) -> None:
        """Keep a worker in this place: start another one when it is lost, until all has failed."""
        while self.failed is None:
            await self.has_room.wait()
            worker = self._create(place)
            try:
                why = await self._live(worker)
            except asyncio.CancelledError:
                if worker not in self.serving:  # those that serve are ended by `close`
                    await self._kill(worker)
                raise
            except Exception as error:
                # Whatever kept the worker from serving is one more failure, and too many end the
                # run. What keeps the first worker of a place from serving is raised by `ready`.
                why = cause_of(error)
                first = self._first[place]
                if not first.done():
                    first.set_exception(root_of(error))
                    await self._kill(worker)
                    self._settle(worker)
                    return
            self._retire(worker, why)
            await self._kill(worker)
            self._settle(worker)

    async def _live(self, worker: Worker) -> str:
        """Start a worker, let it serve, and watch it until it is lost; return why it was."""
        tokens = await worker.client.ready()
        worker.process = await worker.client.process()
        self.loaded.append(worker)
        self._settle(worker)
        await self._join(worker)
        self.serving.append(worker)
        self._log("worker serves", worker=worker.id, place=worker.place)
        self.on_change()
        first = self._first[worker.place]
        if not first.done():
            first.set_result(tokens)
        # Three signs of life within the time after which a silent worker is given up.
        while not worker.lost.done():
            await asyncio.wait([worker.lost], timeout=self._config.health_s / 3)
            await self._ping(worker)
        return worker.lost.result()

    async def _join(self, worker: Worker) -> None:
        """Bring a replacement to the current policy: it must not serve before."""
        while self.on_join is not None:
            # While it loaded, the others may have gone to sleep, and it with them.
            await self.has_room.wait()
            try:
                join = asyncio.to_thread(self.on_join, worker.client.actor)
                return await asyncio.wait_for(join, START_DEADLINE_S)
            except Asleep:
                continue

    async def _ping(self, worker: Worker) -> None:
        if worker.lost.done():
            return
        if self._session_ended():
            worker.lose("the Ray session ended")
            return
        try:
            await worker.client.ping()
        except TimeoutError:
            worker.lose(f"no sign of life for {self._config.health_s:g} s")
        except RayError as error:
            worker.lose(cause_of(error))

    def _retire(self, worker: Worker, why: str) -> None:
        """Take a lost worker out of service, and fail if it was one too many."""
        worker.lose(why)
        self._unsettled.add(worker)
        worker.settled.clear()
        for workers in (self.loaded, self.serving):
            if worker in workers:
                workers.remove(worker)
        self.failures += 1
        self._log(
            "worker lost", worker=worker.id, place=worker.place, why=why, failures=self.failures
        )
        if self._session_ended():
            self.failed = WorkersFailed("the Ray session of the rollout workers has ended")
        elif self.failures > self._config.max_failures:
            self.failed = WorkersFailed(
                f"{self.failures} rollout workers were lost,"
                f" rollout.max_failures={self._config.max_failures}; the last one: {why}"
            )
        worker.retired.set()
        self.on_change()

    def _create(self, place: int) -> Worker:
        # Ray must not queue: the worker's own slots decide what runs.
        options = {**self._places.options[place], "max_concurrency": 10_000}
        worker_id = next(self._ids)
        client = WorkerClient(self._make(options, worker_id), self._config.health_s)
        worker = Worker(worker_id, place, client, asyncio.get_running_loop().create_future())
        self._unsettled.add(worker)
        return worker

    def _settle(self, worker: Worker) -> None:
        """Note that a worker has loaded, or that its process is gone."""
        self._unsettled.discard(worker)
        worker.settled.set()

    async def _kill(self, worker: Worker) -> None:
        """Return when the worker's process is gone: its place is free for the next one."""
        if self._session_ended():
            return
        worker.client.kill()
        if worker.process is None:
            return
        try:
            await end_process(worker.process)
        except (RayError, TimeoutError):
            process = worker.process
            self._log("worker not ended", worker=worker.id, node=process.node, pid=process.pid)

    def _session_ended(self) -> bool:
        """Return whether the Ray session of the workers has ended.

        Then Ray must not be called any more: a call would start another session.
        """
        return _ray_session() != self._session


def _nothing() -> None:
    pass


def _ray_session() -> tuple[str, str] | None:
    """Return what tells this process's Ray session from all others; None if there is none."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


def _reserve(config: RolloutConfig) -> Places:
    wanted = Wanted(
        "rollout.workers",
        config.workers,
        config.cpus_per_worker,
        config.gpus_per_worker,
        config.placement,
    )
    return wanted.reserve(PLACEMENT_S)
