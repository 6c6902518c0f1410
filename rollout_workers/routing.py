"""Which worker a question or a fork goes to."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence

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
        self._loads = _Loads(fleet.serving)
        fleet.on_change = self._changed

    async def least_loaded(self, work: int) -> Worker:
        """Return the least loaded worker once it has room; callers are served in their order.

        Raises WorkersFailed if the fleet has failed.
        """
        if self._fleet.failed:
            raise self._fleet.failed
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._place_waiting()
        try:
            return await future
        except asyncio.CancelledError:
            # It may have been given a worker in the same turn of the loop.
            given = future.done() and not future.cancelled() and future.exception() is None
            if given:
                self.done(future.result(), work)
            raise

    def home(self, worker_id: int, work: int) -> Worker | None:
        """Return the worker with a prefix; None if it is gone or overloaded.

        A fork does not wait for it to have room: its prefix is in the cache now.
        """
        home = self._loads.worker(worker_id)
        if home is None:
            return None
        room = max(self._concurrency, OVERLOAD * self._loads.mean + work)
        if home.load + work > room:
            return None
        self._loads.add(home, work)
        return home

    def done(self, worker: Worker, work: int) -> None:
        """Take work off a worker's load, and give its room to who waits."""
        self._loads.add(worker, -work)
        self._place_waiting()

    def _changed(self) -> None:
        self._loads = _Loads(self._fleet.serving)
        self._place_waiting()

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
            # Questions wait in their order: nothing behind the first is placed before it.
            worker = self._loads.least_loaded()
            if worker is None or worker.load >= BACKLOG * self._concurrency:
                return
            self._waiting.popleft()
            self._loads.add(worker, work)
            future.set_result(worker)


class _Loads:
    """The loads of the workers that serve. Its methods cost a logarithm of how many there are."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = {worker.id: worker for worker in workers}
        self._total = sum(worker.load for worker in workers)
        self._heap = [_entry(worker) for worker in workers]
        heapq.heapify(self._heap)

    @property
    def mean(self) -> float:
        """Return the mean load of the workers; there must be one."""
        return self._total / len(self._workers)

    def worker(self, worker_id: int) -> Worker | None:
        """Return a worker; None if it is gone."""
        worker = self._workers.get(worker_id)
        # One that is lost serves no more, also before the fleet has retired it.
        return None if worker is None or worker.lost.done() else worker

    def add(self, worker: Worker, work: int) -> None:
        """Add work to a worker's load, or take it off."""
        worker.load += work
        if worker.id not in self._workers:
            return
        self._total += work
        heapq.heappush(self._heap, _entry(worker))
        # Entries of earlier loads stay until they come first, or until most are such.
        if len(self._heap) > 4 * len(self._workers):
            self._heap = [_entry(serving) for serving in self._workers.values()]
            heapq.heapify(self._heap)

    def least_loaded(self) -> Worker | None:
        """Return the least loaded worker, of equal ones that in the first place; None without."""
        while self._heap:
            load, _, worker_id = self._heap[0]
            worker = self.worker(worker_id)
            if worker is not None and worker.load == load:
                return worker
            heapq.heappop(self._heap)
        return None


def _entry(worker: Worker) -> tuple[int, int, int]:
    return worker.load, worker.place, worker.id
