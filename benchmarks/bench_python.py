"""The python tool: a warm call against a bare interpreter with the same imports, and against the same zygote without isolation."""

from __future__ import annotations

import ast
import asyncio
import statistics
import subprocess
import time
from typing import Any

from benchmarks.timing import interleaved
from tool_server.sandbox.jail import INSIDE, Toolbox
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.sandbox.pool import JailPool

HELLO = "print('hello')"
COLD, WARM_UP, CALLS = 5, 20, 300
IN_FLIGHT, LOAD, LOADS = 8, 150, 6


def measure() -> list[dict[str, Any]]:
    """The three entries."""
    options = PythonOptions(zygotes=1, slots=IN_FLIGHT)
    layers, toolbox = isolation(options)
    cold = [_cold(toolbox) for _ in range(COLD)]
    boxed = JailPool(options, layers, toolbox)
    bare = JailPool(
        options, Isolation(namespaces=False, landlock=0, seccomp=False, bare=True), toolbox
    )
    loop = asyncio.new_event_loop()

    def hello(pool: JailPool) -> None:
        loop.run_until_complete(_hello(pool))

    def load(pool: JailPool) -> None:
        loop.run_until_complete(_load(pool))

    try:
        interleaved(WARM_UP, boxed=lambda: hello(boxed), bare=lambda: hello(bare))
        one = interleaved(CALLS, boxed=lambda: hello(boxed), bare=lambda: hello(bare))
        many = interleaved(LOADS, boxed=lambda: load(boxed), bare=lambda: load(bare))
    finally:
        boxed.close()
        bare.close()
        loop.close()
    warm, fork, start = (
        statistics.median(one["boxed"]),
        statistics.median(one["bare"]),
        statistics.median(cold),
    )
    rate, bare_rate = (LOAD / statistics.median(many[name]) for name in ("boxed", "bare"))
    p99 = statistics.quantiles(one["boxed"], n=100)[98]
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
    subprocess.run(
        [toolbox.python, "-c", f"import {', '.join(_imports())}\n{HELLO}"],
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def _imports() -> list[str]:
    """The modules that `preload.py` imports before the first call, read from its text: it only imports inside the toolbox."""
    for node in ast.parse((INSIDE / "preload.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRELOADED":
            return [name.strip() for name in ast.literal_eval(node.value).split(",")]
    raise ValueError("preload.py has no PRELOADED")


async def _load(pool: JailPool) -> None:
    """`LOAD` calls; the pool has `IN_FLIGHT` slots."""
    await asyncio.gather(*[_hello(pool) for _ in range(LOAD)])


async def _hello(pool: JailPool) -> None:
    finished = await pool.call([HELLO])
    if finished.output != b"hello\n":
        raise RuntimeError(f"a call answered {finished.output!r}")
