"""What the tool server costs around a tool: an echo tool, 32 calls in flight, through one server actor and in process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import ray

from tool_server.config import ToolServerConfig
from tool_server.pool import start_tool_servers
from tool_server.server import ToolServer

CALLS = 3000
IN_FLIGHT = 32
ARGUMENTS = ("echo", {"text": "hello"}, [], ())
CONFIG = ToolServerConfig.model_validate({"tools": {"echo": {"function": "benchmarks.echo:echo", "concurrency": IN_FLIGHT}}})


class Load(NamedTuple):
    per_call_ms: float  # wall clock of the whole load over the number of calls
    median_ms: float  # of one call's latency, its waiting behind the others included


class Bare:
    """A Ray actor that does what the echo tool does, and nothing else."""

    async def call(self, name: str, arguments: dict[str, Any], images: list[Any], earlier: tuple[Any, ...]) -> str:
        return arguments["text"]


def measure() -> list[dict[str, Any]]:
    """Entry `server_overhead_ms`. Ray's own cost of an actor call is part of it; the detail tells both apart."""
    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    pool = start_tool_servers(CONFIG)
    try:
        pool.ready()
        bare = ray.remote(Bare).options(num_cpus=0.1, max_concurrency=1000).remote()

        async def through_pool() -> None:
            result = await pool.call(*ARGUMENTS)
            if result.text != "hello":
                raise AssertionError(result)

        async def through_ray() -> None:
            await bare.call.remote(*ARGUMENTS)

        served, raw = asyncio.run(_side_by_side(through_pool, through_ray))
    finally:
        pool.shutdown()
        if ours:
            ray.shutdown()
    inside = asyncio.run(_in_process())
    return [
        {
            "name": "server_overhead_ms",
            "value": round(served.per_call_ms, 3),
            "target": 2.0,
            "better": "lower",
            "unit": "ms",
            "detail": f"wall clock a call, {CALLS} calls of an echo tool, {IN_FLIGHT} in flight: client, Ray and one server together; "
            f"a bare Ray actor {raw.per_call_ms:.3f} ms; in process {inside.per_call_ms:.3f} ms; "
            f"median latency {served.median_ms:.1f} ms, bare actor {raw.median_ms:.1f} ms, in process {inside.median_ms:.3f} ms",
        }
    ]


async def _side_by_side(first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]]) -> tuple[Load, Load]:
    """Medians of three alternating loads each, so that a noisy minute hits both."""
    runs: list[tuple[Load, Load]] = []
    for call in (first, second):
        await _load(call, 500)
    for _ in range(3):
        runs.append((await _load(first, CALLS), await _load(second, CALLS)))
    a, b = zip(*runs, strict=True)
    return Load(*map(statistics.median, zip(*a, strict=True))), Load(*map(statistics.median, zip(*b, strict=True)))


async def _in_process() -> Load:
    server = ToolServer(CONFIG)

    async def call() -> None:
        await server.call(*ARGUMENTS)

    try:
        await _load(call, 500)
        return await _load(call, CALLS)
    finally:
        await server.close()


async def _load(call: Callable[[], Awaitable[None]], count: int) -> Load:
    """`count` calls by `IN_FLIGHT` clients, each of which asks again as soon as it is answered."""
    seconds: list[float] = []
    tickets = iter(range(count))

    async def client() -> None:
        for _ in tickets:
            started = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    return Load((time.perf_counter() - started) / count * 1e3, statistics.median(seconds) * 1e3)
