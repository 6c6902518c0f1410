"""What the tool server costs around a tool: an echo tool, 32 calls in flight, through one server actor and called directly."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import ray

from benchmarks.echo import echo
from benchmarks.timing import interleaved
from tool_server.config import ToolServerConfig
from tool_server.pool import start_tool_servers
from tool_server.server import ToolServer

CALLS, LOADS = 2000, 5
IN_FLIGHT = 32
TEXT = "hello"
ARGUMENTS: tuple[Any, ...] = ("echo", {"text": TEXT}, [], ())
CONFIG = ToolServerConfig.model_validate(
    {"tools": {"echo": {"function": "benchmarks.echo:echo", "concurrency": IN_FLIGHT}}}
)


class Bare:
    """A Ray actor that does what the echo tool does, and nothing else."""

    async def call(
        self, name: str, arguments: dict[str, Any], images: list[Any], earlier: tuple[Any, ...]
    ) -> str:
        return arguments["text"]


def measure() -> list[dict[str, Any]]:
    """Entry `server_overhead_ms`: the time that a call adds to a load, which is the reciprocal of the calls a second.

    Wall clock of a load over the number of its calls, less the same for the tool's function called directly. Client, Ray and server
    are all in it, and share this machine's cores.
    """
    ours = not ray.is_initialized()
    if ours:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    loop = asyncio.new_event_loop()
    pool, server = start_tool_servers(CONFIG), ToolServer(CONFIG)
    try:
        pool.ready()
        bare = ray.remote(Bare).options(num_cpus=0.1, max_concurrency=1000).remote()

        async def through_pool() -> str:
            return (await pool.call(*ARGUMENTS)).text

        async def through_ray() -> str:
            return await bare.call.remote(*ARGUMENTS)

        async def in_process() -> str:
            return (await server.call(*ARGUMENTS)).text

        def load(call: Callable[[], Awaitable[str]], count: int = CALLS) -> Callable[[], None]:
            return lambda: loop.run_until_complete(_load(call, count))

        calls = {
            "pool": through_pool,
            "ray": through_ray,
            "process": in_process,
            "direct": lambda: echo(TEXT),
        }
        interleaved(1, **{name: load(call, 500) for name, call in calls.items()})
        seconds = interleaved(LOADS, **{name: load(call) for name, call in calls.items()})
    finally:
        loop.run_until_complete(server.close())
        pool.shutdown()
        if ours:
            ray.shutdown()
    each = {name: statistics.median(of) / CALLS * 1e3 for name, of in seconds.items()}
    return [
        {
            "name": "server_overhead_ms",
            "value": round(each["pool"] - each["direct"], 3),
            "target": 2.0,
            "better": "lower",
            "unit": "ms",
            "detail": f"added wall clock a call: {CALLS} calls, {IN_FLIGHT} in flight, their wall clock over their number, less that of "
            f"the echo function called directly ({each['direct']:.4f} ms); a bare Ray actor takes {each['ray']:.3f} ms, the server without "
            f"Ray {each['process']:.3f} ms; medians of {LOADS} interleaved",
        }
    ]


async def _load(call: Callable[[], Awaitable[str]], count: int) -> None:
    """`count` calls by `IN_FLIGHT` clients, each of which asks again as soon as it is answered."""
    tickets = iter(range(count))

    async def client() -> None:
        for _ in tickets:
            if (answer := await call()) != TEXT:
                raise AssertionError(answer)

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
