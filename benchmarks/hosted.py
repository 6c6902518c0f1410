"""A pool of many more engines than this machine has room for processes.

A few Ray actors stand for all of them. The pool does not know: it holds a handle for each engine,
and every call, answer and sign of life is Ray's. What is missing are the other connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import ray

from benchmarks.cluster import local_ray
from benchmarks.waiting import WaitingWorker
from rollout_workers.fleet import Log, no_log
from rollout_workers.handing_over import actor_of
from rollout_workers.places import Places
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings

if TYPE_CHECKING:
    from ray.actor import ActorHandle

HOSTS = 4
CALLS_AT_ONCE = 100_000
START_S = 120.0


class EngineHost:
    """The actor that stands for many engines."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._engine_class = actor_of(WaitingWorker)
        self._engines: dict[int, Any] = {}

    async def call(self, engine: int, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of one engine."""
        if engine not in self._engines:
            self._engines[engine] = self._engine_class(engine, self._settings)
        return await getattr(self._engines[engine], method)(*arguments, **options)


class HostedEngine:
    """What the pool has instead of the handle of an engine's own actor."""

    def __init__(self, host: ActorHandle, engine: int) -> None:
        self._host, self._engine = host, engine

    def __getattr__(self, name: str) -> Any:
        # Ray's own methods go to the host as they are.
        if name.startswith("__"):
            return getattr(self._host, name)
        return _Method(self._host.call, self._engine, name)


class _Method:
    def __init__(self, call: Any, engine: int, name: str) -> None:
        self._call, self._engine, self._name = call, engine, name

    def options(self, **options: Any) -> _Method:
        return _Method(self._call.options(**options), self._engine, self._name)

    def remote(self, *arguments: Any, **options: Any) -> Any:
        return self._call.remote(self._engine, self._name, *arguments, **options)


class HostedPool(RolloutPool):
    """A rollout pool whose engines share a few actors."""

    def __init__(self, hosts: Sequence[ActorHandle], settings: WorkerSettings, log: Log) -> None:
        self.hosts = hosts
        nowhere = Places(tuple({} for _ in range(settings.config.workers)))
        super().__init__(settings, log=log, places=nowhere)

    def _start(self, options: dict[str, Any], worker_id: int) -> Any:
        return HostedEngine(self.hosts[worker_id % len(self.hosts)], worker_id)


@contextmanager
def hosted(settings: WorkerSettings, log: Log = no_log) -> Iterator[HostedPool]:
    """Start a pool of `settings.config.workers` engines on a Ray of its own."""
    with ExitStack() as afterwards, local_ray():
        host_class = ray.remote(EngineHost).options(num_cpus=0.01, max_concurrency=CALLS_AT_ONCE)
        hosts = [host_class.remote(settings) for _ in range(HOSTS)]
        ray.get([host.__ray_ready__.remote() for host in hosts], timeout=START_S)
        pool = HostedPool(hosts, settings, log)
        # Hosted engines have no process that could be killed: they end with the Ray session.
        afterwards.callback(pool.shutdown)
        pool.ready()
        yield pool
