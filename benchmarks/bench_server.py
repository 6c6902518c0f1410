"""What the tool server costs around a tool.

An echo tool, 32 calls in flight, through one server actor and called directly.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import ray

from benchmarks.cluster import local_ray
from benchmarks.echo import echo
from benchmarks.result import Entry, at_most
from benchmarks.timing import interleaved
from tool_server.config import ToolServerConfig
from tool_server.pool import ToolPool, start_tool_servers
from tool_server.server import ToolServer

CALLS, LOADS = 2000, 5
WARM_UP_CALLS = 500
IN_FLIGHT = 32
TEXT = "hello"
ARGUMENTS: tuple[Any, ...] = ("echo", {"text": TEXT}, [], ())
CONFIG = ToolServerConfig.model_validate(
    {"tools": {"echo": {"function": "benchmarks.echo:echo", "concurrency": IN_FLIGHT}}}
)

Call = Callable[[], Awaitable[str]]


class Bare:
    """A Ray actor that does what the echo tool does, and nothing else."""

    async def call(
        self, name: str, arguments: dict[str, Any], images: list[Any], earlier: tuple[Any, ...]
    ) -> str:
        """Return the text among the arguments."""
        text: str = arguments["text"]
        return text


def measure() -> list[Entry]:
    """Return the entry `server_overhead_ms`: the time that a call adds to a load.

    It is the reciprocal of the calls a second: the wall clock of a load over the number of its
    calls, less the same for the tool's function called directly. Client, Ray and server are all in
    it, and share this machine's cores.
    """
    with nullcontext() if ray.is_initialized() else local_ray():
        ms = _milliseconds()
    detail = (
        f"added wall clock a call: {CALLS} calls, {IN_FLIGHT} in flight, their wall clock over "
        f"their number, less that of the echo function called directly ({ms['direct']:.4f} ms); "
        f"a bare Ray actor takes {ms['ray']:.3f} ms, the server without Ray "
        f"{ms['process']:.3f} ms; medians of {LOADS} interleaved"
    )
    overhead = round(ms["pool"] - ms["direct"], 3)
    return [at_most("server_overhead_ms", overhead, 2.0, "ms", detail)]


def _milliseconds() -> dict[str, float]:
    """Return the milliseconds of a call, for each way to make it."""
    loop = asyncio.new_event_loop()
    pool, server = start_tool_servers(CONFIG), ToolServer(CONFIG)

    def load(call: Call, count: int) -> Callable[[], None]:
        return lambda: loop.run_until_complete(_load(call, count))

    try:
        pool.ready()
        calls = _calls(pool, server)
        warm_up = {name: load(call, WARM_UP_CALLS) for name, call in calls.items()}
        interleaved(1, **warm_up)
        seconds = interleaved(LOADS, **{name: load(call, CALLS) for name, call in calls.items()})
    finally:
        loop.run_until_complete(server.close())
        pool.shutdown()
        loop.close()
    return {name: statistics.median(of) / CALLS * 1e3 for name, of in seconds.items()}


def _calls(pool: ToolPool, server: ToolServer) -> dict[str, Call]:
    """Return the ways to call the tool."""
    bare = ray.remote(Bare).options(num_cpus=0.1, max_concurrency=1000).remote()

    async def through_pool() -> str:
        return (await pool.call(*ARGUMENTS)).text

    async def through_ray() -> str:
        text: str = await bare.call.remote(*ARGUMENTS)
        return text

    async def in_process() -> str:
        return (await server.call(*ARGUMENTS)).text

    direct = partial(echo, TEXT)
    return {"pool": through_pool, "ray": through_ray, "process": in_process, "direct": direct}


async def _load(call: Call, count: int) -> None:
    """Make `count` calls by `IN_FLIGHT` clients, each of which asks again when it is answered."""
    tickets = iter(range(count))

    async def client() -> None:
        for _ in tickets:
            answer = await call()
            if answer != TEXT:
                raise AssertionError(answer)

    await asyncio.gather(*[client() for _ in range(IN_FLIGHT)])
