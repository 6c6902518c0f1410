"""Load: thousands of mixed calls, a tenth of them hostile, through the server as a run uses it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import Counter
from typing import Any

import numpy as np
import psutil
import pytest

from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer
from tool_server.tool import ToolStatus

CALLS = int(os.environ.get("AXPO_LOAD_CALLS", "1000"))
"""5,000 calls take minutes: AXPO_LOAD_CALLS=5000 pytest tests/tool_server/sandbox/test_load.py"""
FIRST_CALLS = 500
"""Before the measurement: caches fill, and allocators find their size."""
IN_FLIGHT = 64
MIB = 2**20
IMAGE = np.zeros((64, 64, 3), np.uint8)

PYTHON = [
    ("print({n})", ToolStatus.OK, "{n}"),
    ("sum(range({n}))", ToolStatus.OK, None),
    ("import numpy as np\nint(np.arange({n}).sum())", ToolStatus.OK, None),
    ("open('f', 'w').write('x' * {n})\nlen(open('f').read())", ToolStatus.OK, "{n}"),
    ("{n} / 0", ToolStatus.TOOL_ERROR, "ZeroDivisionError"),
    ("from PIL import Image\nImage.new('RGB', (16, 16)).show()\n{n}", ToolStatus.OK, "{n}"),
]
HONEST = [
    *[("python", {"code": code}, status, text) for code, status, text in PYTHON],
    ("image_zoom_in", {"bbox_2d": [0, 0, 500, 500]}, ToolStatus.OK, ""),
    ("echo", {"text": "{n}"}, ToolStatus.OK, "{n}"),
    ("telepathy", {}, ToolStatus.TOOL_ERROR, "unknown tool"),
]
HOSTILE = [
    ("import os\nwhile True: os.fork()", "PermissionError"),
    ("while True: print('x' * 9999)", "more than 1 MiB of output"),
    ("import ctypes\nctypes.string_at(0)", "crashed: SIG"),
    ("import os\nos.closerange(0, 99)\nos._exit(0)", "ended before its result"),
    ("x = bytearray(1 << 40)", "MemoryError"),
    (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "can't start new thread",
    ),
    ("import os\nos.write(3, b'\\xff' * 99)\nimport time\ntime.sleep(9)", "not readable"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    ("for n in range(9999): open(str(n), 'w').close()", "No space left"),
    ("x = 1\0", "NUL"),
    ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))", "maximum limit"),
    (
        "import threading, time\n"
        "threading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "can't start new thread",
    ),
    (
        "import ctypes, os\nctypes.CDLL(None).syscall(436, 5, 2**32 - 1, 2)\nwhile True: os.dup(0)",
        "Too many open files",
    ),
    ("import fcntl, os\nfcntl.fcntl(os.pipe()[1], 1031, 1 << 20)", "PermissionError"),
    (
        "import ctypes\n"
        "libc, timer = ctypes.CDLL(None), ctypes.c_int()\n"
        "event = (ctypes.c_int * 16)(0, 0, 10)\n"
        "while libc.syscall(222, 1, event, ctypes.byref(timer)) == 0: pass\n"
        "raise RuntimeError('timers ended')",
        "timers ended",
    ),
    ("import ctypes, os\nctypes.CDLL(None).syscall(200, os.getpid(), 9)\n1 / 0", "ZeroDivision"),
]


class Load:
    """Calls of one server, their answers and what was wrong with them."""

    def __init__(self, server: ToolServer) -> None:
        self.server = server
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._draw = random.Random(0)

    async def many(self, numbers: range) -> None:
        queue = iter(numbers)

        async def worker() -> None:
            for number in queue:
                await self._one(number)

        await asyncio.gather(*[worker() for _ in range(IN_FLIGHT)])

    async def _one(self, number: int) -> None:
        if number % 10 == 0:
            code, text = self._draw.choice(HOSTILE)
            tool, arguments, status = "python", {"code": code}, ToolStatus.TOOL_ERROR
        else:
            tool, template, status, text = self._draw.choice(HONEST)
            arguments = {name: numbered(value, number) for name, value in template.items()}
            text = numbered(text, number)
        images = [IMAGE] if tool == "image_zoom_in" else []
        result = await self.server.call(tool, arguments, images)
        self.answers[number] += 1
        if result.status != status or (text and text not in result.text):
            said = f"{result.status} {result.text[-200:]!r}"
            self.wrong.append(f"{str(arguments)[:60]}: {said}")


def numbered(value: Any, number: int) -> Any:
    return value.replace("{n}", str(number)) if isinstance(value, str) else value


def resident_mib() -> list[int]:
    """Return the resident memory of the server, then of each zygote."""
    gc.collect()
    processes = [psutil.Process()]
    for child in psutil.Process().children(recursive=True):
        # The name of the zygote's module is in bubblewrap's command line, too.
        if "zygote" in " ".join(child.cmdline()) and "bwrap" not in child.name():
            processes.append(child)
    return [process.memory_info().rss // MIB for process in processes]


async def scenario(load: Load) -> None:
    await load.many(range(CALLS, CALLS + FIRST_CALLS))
    before = resident_mib()
    started = time.monotonic()
    await load.many(range(CALLS))
    seconds = time.monotonic() - started
    print(f"{CALLS / seconds:.0f} calls/s, memory {before} -> {resident_mib()} MiB")
    assert sorted(load.answers) == list(range(CALLS + FIRST_CALLS))
    assert set(load.answers.values()) == {1}
    assert load.wrong == []
    after = resident_mib()
    assert after[0] < before[0] + 64
    assert all(now < then + 16 for now, then in zip(after[1:], before[1:], strict=True))
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
    assert len(os.listdir("/proc/self/fd")) < 100


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_thousands_of_mixed_calls_are_each_answered_once_and_leave_nothing():
    # CPU seconds are plenty: what is tested is not the speed of this machine.
    options = {"cpu_s": 20, "wall_s": 300, "memory_mib": 1024}
    tools = {
        "python": {"options": options},
        "image_zoom_in": {},
        "echo": {"function": "tests.tool_server.user_tools:echo"},
    }
    server = ToolServer(ToolServerConfig.model_validate({"tools": tools}))

    async def closing() -> None:
        try:
            await scenario(Load(server))
        finally:
            await server.close()

    asyncio.run(closing())
