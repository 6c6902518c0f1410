"""Runs the attacks against a pool as a recipe would open it, and looks for what each may have left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_server.sandbox.attack_list import ATTACKS, PRELUDE, Attack
from tool_server.sandbox.jail import DEVICES
from tool_server.sandbox.options import MIB, PythonOptions
from tool_server.sandbox.pool import JailPool
from tool_server.tool import Tool, ToolCall, ToolError

ON_TIME_S = 10.0
"""For a call that takes 20 ms on an idle machine."""

GROWTH = 16 * MIB
"""Of a zygote's memory over all attacks: its allocator's noise."""


@dataclass(frozen=True)
class AttackResult:
    number: int
    name: str
    expected: str
    outcome: str  # one line of what the policy was told, and of what was left behind
    held: bool


@dataclass(frozen=True)
class Canaries:
    """What an attack wants: a readable file, listening sockets, a process and a secret of the server's."""

    secret: str
    escaped: str  # what an attack prints that gets through
    file: Path
    port: socket.socket
    abstract: socket.socket
    sentinel: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def out(cls) -> Iterator[Canaries]:
        secret = "canary" + secrets.token_hex(8)
        sentinel = subprocess.Popen(["sleep", "3600"])
        os.environ["AXPO_CANARY"] = secret
        try:
            with (
                tempfile.NamedTemporaryFile("w", prefix="axpo-canary-") as file,
                socket.create_server(("127.0.0.1", 0)) as port,
                socket.socket(socket.AF_UNIX) as abstract,
            ):
                file.write(secret)
                file.flush()
                os.chmod(file.name, 0o644)
                abstract.bind("\0axpo" + secret[6:])
                abstract.listen()
                for listening in (port, abstract):
                    listening.setblocking(False)
                yield cls(
                    secret,
                    "escaped" + secrets.token_hex(8),
                    Path(file.name),
                    port,
                    abstract,
                    sentinel,
                )
        finally:
            os.environ.pop("AXPO_CANARY", None)
            sentinel.kill()
            sentinel.wait()

    def facts(self) -> dict[str, Any]:
        return {
            "canary": str(self.file),
            "port": self.port.getsockname()[1],
            "abstract": self.abstract.getsockname().decode(),
            "pid": self.sentinel.pid,
        }

    def state(self) -> tuple[object, ...]:
        nodes = [os.stat(path) for path in (*DEVICES, self.file)]
        return (
            self.file.read_text(),
            self.sentinel.poll(),
            *((node.st_mode, node.st_uid, node.st_gid, node.st_size) for node in nodes),
        )

    def touched(self) -> list[str]:
        reached = []
        for name, listening in (("port", self.port), ("abstract socket", self.abstract)):
            with contextlib.suppress(BlockingIOError):
                listening.accept()
                reached.append(f"the host's {name} was reached")
        return reached


@dataclass
class Traces:
    """What the server and its jails hold, to compare before and after."""

    pool: JailPool
    canaries: Canaries
    before: dict[str, object] = field(init=False)
    memory: int = field(init=False)

    def __post_init__(self) -> None:
        self.before, self.memory = self._state(), self._memory()

    def left(self) -> list[str]:
        """Differences, after half a second for what the kernel does in its own time."""
        deadline = time.monotonic() + 0.5
        while (now := self._state()) != self.before and time.monotonic() < deadline:
            time.sleep(0.02)
        found = [
            f"{name}: {self.before[name]} -> {now[name]}"
            for name in now
            if now[name] != self.before[name]
        ]
        if self._memory() > self.memory + GROWTH:
            found.append(
                f"memory of the zygotes: {self.memory >> 20} -> {self._memory() >> 20} MiB"
            )
        return found + self.canaries.touched()

    def _state(self) -> dict[str, object]:
        zygotes = self.pool.pids()
        return {
            "zygotes": zygotes,
            "processes": [Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in zygotes],
            "descriptors of the zygotes": [len(os.listdir(f"/proc/{pid}/fd")) for pid in zygotes],
            "mounts": [
                len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in zygotes
            ],
            "descriptors of the server": sum(map(_of_the_sandbox, os.listdir("/proc/self/fd"))),
            "host": self.canaries.state(),
        }

    def _memory(self) -> int:
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for pid in self.pool.pids()
        )


def _of_the_sandbox(descriptor: str) -> bool:
    """Whether one of this process's descriptors is of a kind that the sandbox makes: pipes, its memfds, sequenced-packet sockets.

    Others come and go by themselves in a server that is also a Ray worker.
    """
    try:
        link = os.readlink(f"/proc/self/fd/{descriptor}")
        if link.startswith("socket:"):
            with socket.socket(fileno=os.dup(int(descriptor))) as end:
                return end.family == socket.AF_UNIX and end.type == socket.SOCK_SEQPACKET
    except OSError:
        return False  # closed in the meantime
    return link.startswith(("pipe:", "/memfd:axpo-call"))


def attack_options(options: PythonOptions) -> PythonOptions:
    """The same sandbox with shorter limits: the attacks run into them some twenty times."""
    return options.model_copy(
        update={"cpu_s": 2, "wall_s": 20.0, "memory_mib": 1024, "zygotes": 1, "session": "call"}
    )


async def run_attacks(tool: Tool, pool: JailPool) -> AsyncIterator[AttackResult]:
    """Run every attack, one after the other, against the python tool `tool` over `pool`.

    The tool should be opened with `attack_options`, and for the attacks alone. The caller closes it.
    """
    with Canaries.out() as canaries:
        await answer(tool, "1", canaries)
        traces = Traces(pool, canaries)
        for attack in ATTACKS:
            yield await run_attack(attack, tool, traces)


async def run_attack(attack: Attack, tool: Tool, traces: Traces) -> AttackResult:
    canaries = traces.canaries
    answers = await asyncio.gather(
        *[answer(tool, attack.code, canaries) for _ in range(1 + attack.twice)]
    )
    if attack.then:
        answers.append(await answer(tool, attack.then, canaries))
    faults = []
    for text in answers:
        if canaries.escaped in text or canaries.secret in text:
            faults.append("it got through")
        elif not re.search(attack.wants, text):
            faults.append("another answer than expected")
    started = time.monotonic()
    if (after := await answer(tool, "print(6 * 7)", canaries)) != "42":
        faults.append(f"the next call answered {after[:80]!r}")
    if (seconds := time.monotonic() - started) > ON_TIME_S:
        faults.append(f"the next call took {seconds:.0f} s")
    faults += traces.left()
    last = answers[0].strip().splitlines()[-1:] or [""]
    outcome = "; ".join([last[0][:100], *faults])
    return AttackResult(attack.number, attack.name, attack.wants, outcome, not faults)


async def answer(tool: Tool, code: Any, canaries: Canaries) -> str:
    """The text that the policy would read. Raises what is an infrastructure failure."""
    if isinstance(code, str) and 0 < len(code) < 10_000:
        code = PRELUDE.format(facts=canaries.facts(), escaped=canaries.escaped) + code
    try:
        call = ToolCall(tool.parse({"code": code}))
        text, _ = await tool.run(call)  # type: ignore[misc]
        return str(text)
    except ToolError as error:
        return str(error)
