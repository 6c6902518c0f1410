"""What fails around a call: the zygote, the server, the machine.

Every call is answered, and nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tool_server.python import build
from tool_server.sandbox import process
from tool_server.sandbox.attacks import attack_options
from tool_server.sandbox.options import PythonOptions
from tool_server.tool import ToolUnavailable

SLEEP = "import time\ntime.sleep(60)"


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for `condition` and return how long it took; fail after `seconds`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.fixture
def own(opened):
    """Open a sandbox that no other file of tests shares, with both jails alive."""
    sandbox = opened(wall_s=15.0)
    until(lambda: len(sandbox.pool.pids()) == 2, 60)
    return sandbox


def test_calls_in_flight_of_a_zygote_that_dies_are_answered_at_once_and_the_spare_takes_over(own):
    async def scenario() -> tuple[list[BaseException], float, str, float]:
        calls = [asyncio.ensure_future(own.arun(SLEEP)) for _ in range(3)]
        await asyncio.sleep(0.5)
        zygote, spare = own.pool.pids()
        started = time.monotonic()
        os.kill(zygote, signal.SIGKILL)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        answered = time.monotonic() - started
        text, _ = await own.arun("'alive'")
        assert own.pool.pids()[0] == spare
        return errors, answered, text, time.monotonic() - started

    errors, answered, text, next_call = asyncio.run(scenario())
    assert [type(error) for error in errors] == [ToolUnavailable] * 3
    assert "died during the call" in str(errors[0])
    assert text == "'alive'"
    assert answered < 10  # of 60 s; measured: 0.02 s
    assert next_call < 20  # the spare was warm
    until(lambda: len(own.pool.pids()) == 2, 60)  # a new spare came up


def test_a_call_that_nobody_waits_for_any_more_is_killed(own):
    async def scenario():
        call = asyncio.ensure_future(own.arun(SLEEP))
        zygote = psutil.Process(own.pool.pids()[0])
        while not zygote.children():
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return zygote

    zygote = asyncio.run(scenario())
    until(lambda: not zygote.children(), 20)
    assert own.run("1") == ("1", ())


def test_a_zygote_that_hangs_is_given_up(own, monkeypatch):
    """It does not kill a call that ran over its time, so the server gives up the jail.

    That is infrastructure.
    """
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    zygote = own.pool.pids()[0]
    os.kill(zygote, signal.SIGSTOP)
    with pytest.raises(ToolUnavailable, match="does not answer"):
        asyncio.run(own.pool.call([SLEEP], wall_s=0.5))
    until(lambda: zygote not in own.pool.pids() and len(own.pool.pids()) == 2, 60)
    assert not psutil.pid_exists(zygote)
    assert own.run("1") == ("1", ())


SERVER = """
import asyncio, sys
from tool_server.python import build
from tool_server.sandbox.attacks import attack_options
from tool_server.sandbox.options import PythonOptions
from tool_server.tool import ToolCall

async def main():
    tool, pool = build("python", attack_options(PythonOptions()))
    codes = "while True: pass", "import time; time.sleep(60)"
    arguments = [tool.parse({"code": code}) for code in codes]
    calls = [asyncio.ensure_future(tool.run(ToolCall(each))) for each in arguments]
    await asyncio.sleep(0.3)
    print(*pool.pids(), flush=True)
    await asyncio.gather(*calls)

asyncio.run(main())
"""


def test_nothing_outlives_a_server_that_is_killed():
    """Its zygotes, their bubblewraps and the calls in flight are gone: within 1 s if idle."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert server.stdout is not None
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2
    processes = psutil.Process(server.pid).children(recursive=True)
    assert len(processes) >= 2 + 2 + 2  # zygotes, bubblewraps, calls
    server.kill()
    server.wait()
    server.stdout.close()
    until(lambda: not any(runs(process) for process in processes), 10)


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_closing_ends_everything():
    tool, pool = build("python", attack_options(PythonOptions()))
    zygotes = [psutil.Process(pid) for pid in pool.pids()]
    tree = set()
    for zygote in zygotes:
        line = [zygote, *zygote.parents()]
        tree.update(process for process in line if psutil.Process() in process.parents())
    assert len(tree) >= 4  # each with its bubblewrap
    tool.close()
    assert pool.pids() == []
    assert not any(process.is_running() for process in tree)


def test_a_server_without_descriptors_answers_and_recovers(own):
    import resource

    async def starved() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(descriptor) for descriptor in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        taken = []
        try:
            with contextlib.suppress(OSError):
                while True:  # every free number below the limit, too
                    taken.append(os.dup(0))
            with pytest.raises((ToolUnavailable, OSError)):
                await own.arun("1")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)

    asyncio.run(starved())
    assert own.run("1") == ("1", ())
