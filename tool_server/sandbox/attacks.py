"""Run the attacks against a python tool, and look for what each may have left behind."""

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

SETTLE_S = 0.5
"""For what the kernel does in its own time after a call."""

GROWTH = 16 * MIB
"""Of a zygote's memory over all attacks: the noise of its allocator."""

SECRET_PREFIX = "canary"

MAX_PRELUDED = 10_000
"""Characters. Longer code is an attack by its length: it stays as it is."""


@dataclass(frozen=True)
class AttackResult:
    """How one attack went."""

    number: int
    name: str
    expected: str
    outcome: str  # one line of what the policy was told, and of what was left behind
    held: bool


@dataclass(frozen=True)
class Canaries:
    """What an attack wants.

    That is a readable file, listening sockets, a process and a secret of the server's.
    """

    secret: str
    escaped: str  # what an attack prints that gets through
    file: Path
    port: socket.socket
    abstract: socket.socket
    datagram: socket.socket
    sentinel: subprocess.Popen[bytes]

    @classmethod
    @contextlib.contextmanager
    def out(cls) -> Iterator[Canaries]:
        """Put the canaries out, and take them in at the end."""
        # A new secret each time: no earlier run can have left it anywhere.
        random = secrets.token_hex(8)
        secret = SECRET_PREFIX + random
        sentinel = subprocess.Popen(["sleep", "3600"])
        os.environ["AXPO_CANARY"] = secret
        try:
            with (
                tempfile.NamedTemporaryFile("w", prefix="axpo-canary-") as file,
                tempfile.TemporaryDirectory(prefix="axpo-canary-") as folder,
                socket.create_server(("127.0.0.1", 0)) as port,
                socket.socket(socket.AF_UNIX) as abstract,
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
            ):
                file.write(secret)
                file.flush()
                # Everybody may read it, so only the sandbox keeps an attack from it.
                os.chmod(file.name, 0o644)
                abstract.bind("\0axpo" + random)
                abstract.listen()
                datagram.bind(f"{folder}/socket")
                os.chmod(folder, 0o755)
                os.chmod(f"{folder}/socket", 0o777)
                for listening in (port, abstract, datagram):
                    listening.setblocking(False)
                escaped = "escaped" + secrets.token_hex(8)
                yield cls(secret, escaped, Path(file.name), port, abstract, datagram, sentinel)
        finally:
            os.environ.pop("AXPO_CANARY", None)
            sentinel.kill()
            sentinel.wait()

    def facts(self) -> dict[str, Any]:
        """Return what an attack is told of the host."""
        return {
            "canary": str(self.file),
            "port": self.port.getsockname()[1],
            "abstract": self.abstract.getsockname().decode(),
            "datagram": self.datagram.getsockname(),
            "pid": self.sentinel.pid,
        }

    def state(self) -> tuple[object, ...]:
        """Return what an attack may have changed, to compare."""
        nodes = [os.stat(path) for path in (*DEVICES, self.file)]
        rights = [(node.st_mode, node.st_uid, node.st_gid, node.st_size) for node in nodes]
        return (self.file.read_text(), self.sentinel.poll(), *rights)

    def touched(self) -> list[str]:
        """Return a line for each listening socket that was reached."""
        reached = []
        for name, listening in (("port", self.port), ("abstract socket", self.abstract)):
            with contextlib.suppress(BlockingIOError):
                listening.accept()
                reached.append(f"the host's {name} was reached")
        with contextlib.suppress(BlockingIOError):
            self.datagram.recv(64)
            reached.append("the host's socket of datagrams was reached")
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
        """Return the differences that do not go away by themselves in half a second."""
        deadline = time.monotonic() + SETTLE_S
        now = self._state()
        while now != self.before and time.monotonic() < deadline:
            time.sleep(0.02)
            now = self._state()
        found = []
        for name, state in now.items():
            if state != self.before[name]:
                found.append(f"{name}: {self.before[name]} -> {state}")
        if self._memory() > self.memory + GROWTH:
            grown = f"{self.memory >> 20} -> {self._memory() >> 20} MiB"
            found.append(f"memory of the zygotes: {grown}")
        return found + self.canaries.touched()

    def _state(self) -> dict[str, object]:
        zygotes = self.pool.pids()
        return {
            "zygotes": zygotes,
            "processes": [_children(pid) for pid in zygotes],
            "descriptors of the zygotes": [len(os.listdir(f"/proc/{pid}/fd")) for pid in zygotes],
            "mounts": [_mounts(pid) for pid in zygotes],
            "descriptors of the server": sum(map(_of_the_sandbox, os.listdir("/proc/self/fd"))),
            "host": self.canaries.state(),
        }

    def _memory(self) -> int:
        """Return the resident bytes of all zygotes."""
        pages = 0
        for pid in self.pool.pids():
            _, resident, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            pages += int(resident)
        return pages * os.sysconf("SC_PAGE_SIZE")


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


def _mounts(pid: int) -> int:
    return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())


def _of_the_sandbox(descriptor: str) -> bool:
    """Return whether one of this process's descriptors is of a kind that the sandbox makes.

    Those are pipes, its memfds, and sequenced-packet sockets. Others come and go by themselves in
    a server that is also a Ray worker.
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
    """Return the same sandbox with shorter limits: the attacks run into them some twenty times."""
    return options.model_copy(
        update={"cpu_s": 2, "wall_s": 14.0, "memory_mib": 1024, "zygotes": 1, "session": "call"}
    )


async def run_attacks(tool: Tool, pool: JailPool) -> AsyncIterator[AttackResult]:
    """Run every attack, one after the other, against the python tool `tool` over `pool`.

    The tool should be opened with `attack_options`, and for the attacks alone. The caller closes
    it.
    """
    with Canaries.out() as canaries:
        # The first call makes what a pool keeps: the baseline is taken after it.
        await answer(tool, "1", canaries)
        traces = Traces(pool, canaries)
        for attack in ATTACKS:
            yield await run_attack(attack, tool, traces)


async def run_attack(attack: Attack, tool: Tool, traces: Traces) -> AttackResult:
    """Run one attack and one honest call after it; look for what was left."""
    canaries = traces.canaries
    at_once = 2 if attack.twice else 1
    calls = [answer(tool, attack.code, canaries) for _ in range(at_once)]
    answers = await asyncio.gather(*calls)
    if attack.then:
        answers.append(await answer(tool, attack.then, canaries))
    faults = []
    for text in answers:
        faults += _faults(attack, text, canaries)
    faults += await _faults_of_the_next_call(tool, canaries)
    faults += traces.left()
    lines = answers[0].strip().splitlines()
    last_line = lines[-1] if lines else ""
    outcome = "; ".join([last_line[:100], *faults])
    return AttackResult(attack.number, attack.name, attack.wants, outcome, not faults)


def _faults(attack: Attack, text: str, canaries: Canaries) -> list[str]:
    if canaries.escaped in text or canaries.secret in text:
        return ["it got through"]
    if not re.search(attack.wants, text):
        return ["another answer than expected"]
    return []


async def _faults_of_the_next_call(tool: Tool, canaries: Canaries) -> list[str]:
    faults = []
    started = time.monotonic()
    after = await answer(tool, "print(6 * 7)", canaries)
    seconds = time.monotonic() - started
    if after != "42":
        faults.append(f"the next call answered {after[:80]!r}")
    if seconds > ON_TIME_S:
        faults.append(f"the next call took {seconds:.0f} s")
    return faults


async def answer(tool: Tool, code: Any, canaries: Canaries) -> str:
    """Return the text that the policy would read. An infrastructure failure is raised."""
    if isinstance(code, str) and 0 < len(code) < MAX_PRELUDED:
        code = PRELUDE.format(facts=canaries.facts(), escaped=canaries.escaped) + code
    try:
        call = ToolCall(tool.parse({"code": code}))
        text, _ = await tool.run(call)  # type: ignore[misc]
        return str(text)
    except ToolError as error:
        return str(error)
