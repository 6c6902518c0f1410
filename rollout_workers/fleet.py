"""The rollout workers of a pool: each in its place of a placement group, watched, and replaced where it dies or stops answering."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from rollout_workers.config import RolloutConfig

START_DEADLINE_S = 900.0
"""Seconds for engines to load a model (an 8B model from a cold disk takes minutes), and for a replacement to get the weights."""
PLACEMENT_S = 60.0

Log = Callable[..., None]
"""Takes an event's name and its fields."""


def no_log(event: str, **fields: Any) -> None:
    """Drop the event."""


class WorkersFailed(Exception):
    """More workers were lost than the recipe allows."""


@dataclass(eq=False)
class Worker:
    """One actor. A replacement is a new Worker with an id of its own, in the same place."""

    id: int
    place: int
    actor: Any
    lost: asyncio.Future[str]  # why; set once
    load: int = 0  # rollouts and continuations in flight
    process: tuple[str, int] | None = None  # node and process id

    def lose(self, why: str) -> None:
        """Give this worker up: what it has in flight is run elsewhere, and it is replaced."""
        if not self.lost.done():
            self.lost.set_result(why)


class Fleet:
    """Lives on one event loop. `serving` holds the workers that have the current weights; `changed` is called when it changes."""

    def __init__(
        self,
        make: Callable[[Any, int], Any],
        config: RolloutConfig,
        changed: Callable[[], None],
        log: Log,
    ) -> None:
        """`make(options, id)` creates an actor. Raises ValueError where Ray cannot place the workers."""
        self.serving: list[Worker] = []
        self.failures = 0
        self.failed: WorkersFailed | None = None
        self.on_join: Callable[[Any], None] | None = None
        """Brings a replacement to the current policy before it serves; blocking, called in a thread."""
        self._make, self._config, self._changed, self._log = make, config, changed, log
        self._ids = itertools.count()
        self._group = _reserve(config)
        self._keepers: list[asyncio.Task[None]] = []
        self._first: list[asyncio.Future[Any]] = []

    def start(self) -> None:
        """Start all workers side by side; call on the loop."""
        loop = asyncio.get_running_loop()
        self._first = [loop.create_future() for _ in range(self._config.workers)]
        self._keepers = [
            asyncio.create_task(self._keep(place)) for place in range(self._config.workers)
        ]

    async def ready(self) -> Any:
        """What the workers' `ready` gives, once all serve. Raises what a worker's start raised, or TimeoutError."""
        return (
            await asyncio.wait_for(
                asyncio.gather(*[asyncio.shield(first) for first in self._first]), START_DEADLINE_S
            )
        )[0]

    async def check(self) -> None:
        """Ask every serving worker for a sign of life; those without one serve no more."""
        workers = list(self.serving)
        await asyncio.gather(*[self._ping(worker) for worker in workers])
        while any(worker in self.serving for worker in workers if worker.lost.done()):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End engines and actors, and give their places back; a worker that is dead or does not answer is killed."""
        for keeper in self._keepers:
            keeper.cancel()
        workers = list(self.serving)
        asked = [
            asyncio.ensure_future(within(worker.actor.shutdown.remote(), 20)) for worker in workers
        ]
        await asyncio.gather(*asked, *self._keepers, return_exceptions=True)
        for worker in workers:
            ray.kill(worker.actor)
        remove_placement_group(self._group)

    async def _keep(self, place: int) -> None:
        """A worker in this place, and another one when it is lost, until the fleet has failed."""
        while self.failed is None:
            worker = self._create(place)
            try:
                why = await self._live(worker)
            except (
                Exception
            ) as error:  # whatever kept it from serving: one more failure, and too many end the run
                why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer in time'}"
                if not self._first[place].done():
                    self._first[place].set_exception(
                        error.cause if isinstance(error, RayTaskError) else error
                    )
                    await self._kill(worker)
                    return
            except asyncio.CancelledError:
                if worker not in self.serving:
                    await self._kill(worker)
                raise
            worker.lose(why)
            if worker in self.serving:
                self.serving.remove(worker)
            self.failures += 1
            self._log("worker lost", worker=worker.id, why=why, failures=self.failures)
            if self.failures > self._config.max_failures:
                self.failed = WorkersFailed(
                    f"{self.failures} rollout workers were lost, rollout.max_failures={self._config.max_failures}; the last one: {why}"
                )
            self._changed()
            await self._kill(worker)

    async def _live(self, worker: Worker) -> str:
        """Start, serve, and be watched until lost; returns why."""
        first = self._first[worker.place]
        answer = await within(worker.actor.ready.remote(), START_DEADLINE_S)
        worker.process = await within(worker.actor.__ray_call__.remote(_process), START_DEADLINE_S)
        if self.on_join is not None:
            await asyncio.wait_for(asyncio.to_thread(self.on_join, worker.actor), START_DEADLINE_S)
        self.serving.append(worker)
        self._log("worker serves", worker=worker.id, place=worker.place)
        self._changed()
        if not first.done():
            first.set_result(answer)
        while not worker.lost.done():
            await asyncio.wait([worker.lost], timeout=self._config.health_s / 3)
            await self._ping(worker)
        return worker.lost.result()

    async def _ping(self, worker: Worker) -> None:
        if worker.lost.done():
            return
        try:
            await within(worker.actor.ping.remote(), self._config.health_s)
        except TimeoutError:
            worker.lose(f"no sign of life for {self._config.health_s:g} s")
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            worker.lose(f"{type(cause).__name__}")

    def _create(self, place: int) -> Worker:
        config, worker_id = self._config, next(self._ids)
        options = {
            "num_cpus": config.cpus_per_worker,
            "num_gpus": config.gpus_per_worker,
            "max_concurrency": 10_000,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=place
            ),
        }
        return Worker(
            worker_id,
            place,
            self._make(options, worker_id),
            asyncio.get_running_loop().create_future(),
        )

    async def _kill(self, worker: Worker) -> None:
        """Returns when the process is gone: its place is free for the next one. A stopped process ignores Ray, not SIGKILL."""
        ray.kill(worker.actor)
        if worker.process is None:
            return
        node, pid = worker.process
        here = NodeAffinitySchedulingStrategy(node, soft=True)
        try:
            await within(
                ray.remote(_end).options(num_cpus=0, scheduling_strategy=here).remote(node, pid), 60
            )
        except (RayError, TimeoutError):
            self._log("worker not ended", worker=worker.id, node=node, pid=pid)


async def within(reference: Any, seconds: float) -> Any:
    """The value of an object reference; TimeoutError where it is not there in time."""
    done, _ = await asyncio.wait([value := answer(reference)], timeout=seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return value.result()


def answer(reference: Any) -> asyncio.Future[Any]:
    """An object reference as a future; nobody complains where what it comes to is no longer wanted."""
    future = asyncio.wrap_future(reference.future())
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _process(_: Any) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()


def _end(node: str, pid: int) -> None:
    """SIGKILL on its own node; a node that is gone took the process with it."""
    if ray.get_runtime_context().get_node_id() == node:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _reserve(config: RolloutConfig) -> Any:
    bundle = {"CPU": max(config.cpus_per_worker, 0.001)} | (
        {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    )
    group = placement_group([bundle] * config.workers, strategy=config.placement)
    if not group.wait(PLACEMENT_S):
        remove_placement_group(group)
        raise ValueError(
            f"rollout.workers={config.workers} of {bundle} do not fit into Ray's {ray.available_resources()}"
        )
    return group
