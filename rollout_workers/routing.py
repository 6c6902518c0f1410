"""Which worker a question or a fork goes to."""

from __future__ import annotations

import asyncio
from collections import deque

from rollout_workers.fleet import Fleet, Worker, WorkersFailed

OVERLOAD = 1.25
"""A fork leaves the engine with its prefix if that has no slot left and more than this times the
mean load (consistent hashing with bounded loads)."""
BACKLOG = 2.0
"""Rollouts that a worker is given at most, over its concurrency.

A group counts until its longest rollout ends, when most of the others have long left their slots.
"""


class Router:
    """Share work out over the workers of a fleet. Lives on the fleet's event loop.

    A worker that is returned has the work added to its load; `done` takes it off again.
    """

    def __init__(self, fleet: Fleet, concurrency: int) -> None:
        """Route over `fleet`; `concurrency` is the slots of each worker."""
        self._fleet = fleet
        self._concurrency = concurrency
        self._waiting: deque[tuple[int, asyncio.Future[Worker]]] = deque()
        fleet.on_change = self._place_waiting

    async def least_loaded(self, work: int) -> Worker:
        """Return the least loaded worker once it has room; callers are served in their order.

        Raises WorkersFailed if the fleet has failed.
        """
        if self._fleet.failed:
            raise self._fleet.failed
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._place_waiting()
        return await future

    def home(self, worker_id: int, work: int) -> Worker | None:
        """Return the worker with a prefix; None if it is gone or overloaded.

        A fork does not wait for it to have room: its prefix is in the cache now.
        """
        serving = self._serving()
        home = next((worker for worker in serving if worker.id == worker_id), None)
        if home is None:
            return None
        load = sum(worker.load for worker in serving)
        room = max(self._concurrency, OVERLOAD * load / len(serving) + work)
        if home.load + work > room:
            return None
        home.load += work
        return home

    def done(self, worker: Worker, work: int) -> None:
        """Take work off a worker's load, and give its room to who waits."""
        worker.load -= work
        self._place_waiting()

    def _serving(self) -> list[Worker]:
        return [worker for worker in self._fleet.serving if not worker.lost.done()]

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
            serving = self._serving()
            if not serving:
                return
            # Questions wait in their order: nothing behind the first is placed before it.
            worker = min(serving, key=lambda worker: (worker.load, worker.place))
            if worker.load >= BACKLOG * self._concurrency:
                return
            self._waiting.popleft()
            worker.load += work
            future.set_result(worker)
