"""Load: thousands of mixed calls, a tenth of them hostile, through the server as a run uses it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import Counter

import numpy as np
import psutil
import pytest

from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer
from tool_server.tool import ToolStatus

CALLS, IN_FLIGHT = int(os.environ.get("AXPO_LOAD_CALLS", "1000")), 64
"""5,000 calls take minutes: `AXPO_LOAD_CALLS=5000 pytest tests/tool_server/sandbox/test_load.py`."""
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
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        "can't start new thread",
    ),
    ("import os\nos.write(3, b'\\xff' * 99)\nimport time\ntime.sleep(9)", "not readable"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    ("for n in range(9999): open(str(n), 'w').close()", "No space left"),
    ("x = 1\0", "NUL"),
]


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
    answers: Counter[int] = Counter()
    wrong: list[str] = []
    draw = random.Random(0)

    async def one(number: int) -> None:
        if number % 10 == 0:
            code, text = draw.choice(HOSTILE)
            tool, arguments, status = "python", {"code": code}, ToolStatus.TOOL_ERROR
        else:
            tool, arguments, status, text = draw.choice(HONEST)
            arguments = {
                k: v.replace("{n}", str(number)) if isinstance(v, str) else v
                for k, v in arguments.items()
            }
            text = text and text.replace("{n}", str(number))
        result = await server.call(tool, arguments, [IMAGE] if tool == "image_zoom_in" else [])
        answers[number] += 1
        if result.status != status or (text and text not in result.text):
            wrong.append(f"{str(arguments)[:60]}: {result.status} {result.text[-200:]!r}")

    async def many(numbers: range) -> None:
        queue = iter(numbers)

        async def worker() -> None:
            for number in queue:
                await one(number)

        await asyncio.gather(*[worker() for _ in range(IN_FLIGHT)])

    async def scenario() -> None:
        await many(range(CALLS, CALLS + 500))  # caches fill and allocators find their size
        me, before = psutil.Process(), measure()
        started = time.monotonic()
        await many(range(CALLS))
        print(
            f"{CALLS / (time.monotonic() - started):.0f} calls/s, memory {before} -> {measure()} MiB"
        )
        assert sorted(answers) == list(range(CALLS + 500))
        assert set(answers.values()) == {1}
        assert wrong == []
        after = measure()
        assert after[0] < before[0] + 64
        assert all(now < then + 16 for now, then in zip(after[1:], before[1:], strict=True))
        zombies = [
            child for child in me.children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE
        ]
        assert zombies == []
        assert len(os.listdir("/proc/self/fd")) < 100

    def measure() -> list[int]:
        """MiB of the server, then of each zygote."""
        gc.collect()
        children = [
            child
            for child in psutil.Process().children(recursive=True)
            if "zygote" in " ".join(child.cmdline())
        ]
        return [
            process.memory_info().rss // MIB
            for process in (psutil.Process(), *children)
            if "bwrap" not in process.name()
        ]

    async def closing() -> None:
        try:
            await scenario()
        finally:
            await server.close()

    asyncio.run(closing())
