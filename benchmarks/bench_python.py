"""The python tool: what a warm call gains over a bare interpreter, and what its isolation costs.

A bare interpreter makes the same imports. The isolation is compared with the same zygote without
any layer.
"""

from __future__ import annotations

import ast
import asyncio
import statistics
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass

from benchmarks.result import Entry, at_least, at_most
from benchmarks.timing import interleaved, timed
from tool_server.sandbox.jail import INSIDE, Toolbox
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.sandbox.pool import JailPool

HELLO = "print('hello')"
COLD, WARM_UP, CALLS = 5, 20, 300
IN_FLIGHT, LOAD, LOADS = 8, 150, 6  # calls at once, calls of a load, loads
BARE = Isolation(namespaces=False, landlock=0, seccomp=False, bare=True)


@dataclass(frozen=True)
class Measured:
    """Seconds of single calls, and of loads of many calls, with and without the isolation."""

    single: dict[str, list[float]]
    loads: dict[str, list[float]]


def measure() -> list[Entry]:
    """Return the three entries."""
    options = PythonOptions(zygotes=1, slots=IN_FLIGHT)
    layers, toolbox = isolation(options)
    start = statistics.median(_cold(toolbox) for _ in range(COLD))
    with ExitStack() as stack:
        boxed = stack.enter_context(closing(JailPool(options, layers, toolbox)))
        bare = stack.enter_context(closing(JailPool(options, BARE, toolbox)))
        measured = _measured(boxed, bare)
    warm = statistics.median(measured.single["boxed"])
    fork = statistics.median(measured.single["bare"])
    p99 = statistics.quantiles(measured.single["boxed"], n=100)[98]
    rate = LOAD / statistics.median(measured.loads["boxed"])
    bare_rate = LOAD / statistics.median(measured.loads["bare"])
    return [
        at_least(
            "python_warm_vs_bare_imports",
            round(start / warm, 1),
            60.0,
            "x",
            f"medians of print('hello'): python -c with the zygote's imports {start * 1e3:.0f} ms, "
            f"call {warm * 1e3:.1f} ms (p99 {p99 * 1e3:.1f} ms)",
        ),
        at_most(
            "python_sandbox_vs_fork_latency",
            round(warm / fork, 3),
            1.5,
            "x",
            f"medians one at a time: {warm * 1e3:.1f} ms with every layer, "
            f"{fork * 1e3:.1f} ms the same zygote with none",
        ),
        at_least(
            "python_sandbox_vs_fork_rate",
            round(rate / bare_rate, 3),
            0.7,
            "x",
            f"{IN_FLIGHT} in flight, one zygote: {rate:.0f} calls/s with every layer, "
            f"{bare_rate:.0f} with none",
        ),
    ]


def _measured(boxed: JailPool, bare: JailPool) -> Measured:
    loop = asyncio.new_event_loop()

    def single(pool: JailPool) -> Callable[[], None]:
        return lambda: loop.run_until_complete(_hello(pool))

    def load(pool: JailPool) -> Callable[[], None]:
        return lambda: loop.run_until_complete(_load(pool))

    try:
        interleaved(WARM_UP, boxed=single(boxed), bare=single(bare))
        return Measured(
            single=interleaved(CALLS, boxed=single(boxed), bare=single(bare)),
            loads=interleaved(LOADS, boxed=load(boxed), bare=load(bare)),
        )
    finally:
        loop.close()


def _cold(toolbox: Toolbox) -> float:
    """Return the seconds of an interpreter of its own, with the imports that the zygote made."""
    code = f"import {', '.join(_imports())}\n{HELLO}"
    command = [toolbox.python, "-c", code]
    _, seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    return seconds


def _imports() -> list[str]:
    """Return the modules that the zygote imports before the first call.

    They are read from the text of `preload.py`, which can be imported only inside the toolbox.
    """
    for node in ast.parse((INSIDE / "preload.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRELOADED":
            return [name.strip() for name in ast.literal_eval(node.value).split(",")]
    raise ValueError("preload.py has no PRELOADED")


async def _load(pool: JailPool) -> None:
    """Make `LOAD` calls; the pool has `IN_FLIGHT` slots."""
    await asyncio.gather(*[_hello(pool) for _ in range(LOAD)])


async def _hello(pool: JailPool) -> None:
    finished = await pool.call([HELLO])
    if finished.output != b"hello\n":
        raise RuntimeError(f"a call answered {finished.output!r}")
