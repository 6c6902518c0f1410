"""The python tool: a warm call against a bare interpreter with the same imports, and against the same zygote without isolation."""

from __future__ import annotations

import ast
import asyncio
import statistics
import subprocess
import time
from typing import Any

from tool_server.sandbox.jail import INSIDE, Toolbox
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.sandbox.pool import JailPool

HELLO = "print('hello')"
COLD, ROUNDS, PER_ROUND = 5, 12, 25
IN_FLIGHT, RATE_CALLS = 8, 150


def measure() -> list[dict[str, Any]]:
    """The three entries. Sandbox and bare zygote take turns, so that what else the machine does falls on both."""
    options = PythonOptions(zygotes=1, slots=IN_FLIGHT)
    layers, toolbox = isolation(options)
    cold = [_cold(toolbox) for _ in range(COLD)]
    boxed = JailPool(options, layers, toolbox)
    bare = JailPool(options, Isolation(namespaces=False, landlock=0, seccomp=False, bare=True), toolbox)
    try:
        asyncio.run(_latencies(boxed, 20))
        asyncio.run(_latencies(bare, 20))
        boxed_s: list[float] = []
        bare_s: list[float] = []
        boxed_rates: list[float] = []
        bare_rates: list[float] = []
        for _ in range(ROUNDS):
            boxed_s += asyncio.run(_latencies(boxed, PER_ROUND))
            bare_s += asyncio.run(_latencies(bare, PER_ROUND))
        for _ in range(ROUNDS // 2):
            boxed_rates.append(asyncio.run(_rate(boxed, RATE_CALLS)))
            bare_rates.append(asyncio.run(_rate(bare, RATE_CALLS)))
    finally:
        boxed.close()
        bare.close()
    warm, fork, start = statistics.median(boxed_s), statistics.median(bare_s), statistics.median(cold)
    rate, bare_rate = statistics.median(boxed_rates), statistics.median(bare_rates)
    p99 = statistics.quantiles(boxed_s, n=100)[98]
    return [
        {
            "name": "python_warm_vs_bare_imports",
            "value": round(start / warm, 1),
            "target": 60.0,
            "better": "higher",
            "unit": "x",
            "detail": f"medians of print('hello'): python -c with the zygote's imports {start * 1e3:.0f} ms, call {warm * 1e3:.1f} ms "
            f"(p99 {p99 * 1e3:.1f} ms)",
        },
        {
            "name": "python_sandbox_vs_fork_latency",
            "value": round(warm / fork, 3),
            "target": 1.5,
            "better": "lower",
            "unit": "x",
            "detail": f"medians one at a time: {warm * 1e3:.1f} ms with every layer, {fork * 1e3:.1f} ms the same zygote with none",
        },
        {
            "name": "python_sandbox_vs_fork_rate",
            "value": round(rate / bare_rate, 3),
            "target": 0.7,
            "better": "higher",
            "unit": "x",
            "detail": f"{IN_FLIGHT} in flight, one zygote: {rate:.0f} calls/s with every layer, {bare_rate:.0f} with none",
        },
    ]


def _cold(toolbox: Toolbox) -> float:
    """Seconds of an interpreter of its own for the hello, with the imports that the zygote has made."""
    started = time.perf_counter()
    subprocess.run([toolbox.python, "-c", f"import {', '.join(_imports())}\n{HELLO}"], check=True, capture_output=True)
    return time.perf_counter() - started


def _imports() -> list[str]:
    """The modules that `execute.py` imports before the first call, read from its text: it only imports inside the toolbox."""
    for node in ast.parse((INSIDE / "execute.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRELOADED":
            return [name.strip() for name in ast.literal_eval(node.value).split(",")]
    raise ValueError("execute.py has no PRELOADED")


async def _latencies(pool: JailPool, calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        await _hello(pool)
        seconds.append(time.perf_counter() - started)
    return seconds


async def _rate(pool: JailPool, calls: int) -> float:
    started = time.perf_counter()
    await asyncio.gather(*[_hello(pool) for _ in range(calls)])
    return calls / (time.perf_counter() - started)


async def _hello(pool: JailPool) -> None:
    finished = await pool.call([HELLO])
    if finished.output != b"hello\n":
        raise RuntimeError(f"a call answered {finished.output!r}")
