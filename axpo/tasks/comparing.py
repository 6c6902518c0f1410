"""Compare expressions in short-lived processes: the server that `axpo.tasks.mathematics` starts.

    python -P comparing.py PARENT_PID        stdin: a socket of packets

The server imports math-verify once, and forks a child for each comparison. The child works under
limits of CPU time and memory, so a comparison that cannot be finished ends alone.

There are two lanes, so that nobody waits for such a comparison. Each begins in the short lane.
One that is not done after `SHORT_S` of CPU time moves to the long lane, behind the others by its
niceness. If that lane is full, it is ended, and begins again when there is room.

A packet is `[[truth, ...], answer]` as JSON, with a socket for the reply. The reply is one `Reply`.

Nothing outlives the process that started the server. The server ends when its socket closes or its
parent's pid changes, and the kernel kills the children with the server.

Standard library and math-verify only: it runs as a script, without the environment of its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

SHORT_S = 0.3
"""Seconds of CPU time in the short lane. Usual comparisons take 0.01 to 0.2."""

CPU_S = 2
"""Seconds of CPU time of a comparison in all."""

MEMORY = 128 << 20
"""Bytes that a comparison may use beyond those of the server. Usual ones use 3 MiB."""

WALL_S = 30.0
"""Seconds that a comparison may take on a machine that is busy with other work."""

QUEUE_S = 20.0
"""Seconds that a comparison may wait for its turn."""

LANES = (32, 8)
"""Comparisons at the same time in the short and in the long lane."""

NICENESS = 5
"""Of the long lane."""

_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_WARM_UP = (
    ("\\frac{1}{2}", "0.5"),
    ("(x+1)^2", "x^2+2x+1"),
    ("\\sin^2(x)+\\cos^2(x)", "1"),
    ("\\frac{\\sqrt{3}+2}{5\\pi}", "\\frac{2+\\sqrt{3}}{5\\pi}"),
    ("(-\\infty, 3] \\cup [5, \\infty)", "x=3"),
    ("\\{1, 2\\}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("\\log_2(8)", "3e^{2x}"),
)
# What an input can do to its process: it ran out of time, stack or memory.
_OWN_FAULT = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)


class Reply(StrEnum):
    """How a comparison ended."""

    EQUAL = "equal"
    DIFFERENT = "different"
    LIMITS = "limits"  # time or memory: the answer's own fault
    UNREADABLE = "unreadable"  # a truth is no expression
    BUSY = "busy"  # no turn within `QUEUE_S`
    LOST = "lost"  # the machine ended it, or gave it too little time


@dataclass
class _Comparison:
    """One comparison, and the process that works on it."""

    request: bytes
    reply: socket.socket
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0
    pid: int = 0
    is_long: bool = False
    is_ended: bool = False  # by the server, for its limits

    def answer(self, reply: Reply) -> None:
        # Whoever asked may be gone.
        with contextlib.suppress(OSError):
            self.reply.send(reply.encode())
        self.reply.close()

    def is_wanted(self) -> bool:
        poll = select.poll()
        poll.register(self.reply, 0)  # hang-ups are always told
        return not poll.poll(0)

    def cpu_s(self) -> float:
        # The number of another process's CPU clock (clock_getcpuclockid(3)).
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:  # it has just ended
            return 0.0


class Server:
    """Fork a child for each comparison that comes in; never compute anything itself."""

    def __init__(self, channel: socket.socket, parent: int) -> None:
        self._channel = channel
        self._parent = parent
        self._pid = os.getpid()
        self._memory = _address_space() + MEMORY
        self._short: deque[_Comparison] = deque()  # waiting for the short lane
        self._long: deque[_Comparison] = deque()
        self._running: dict[int, _Comparison] = {}  # by the pipe on which the child replies

    def serve(self) -> None:
        """Answer until the parent is gone."""
        while os.getppid() == self._parent:
            sources = [self._channel.fileno(), *self._running]
            ready, _, _ = select.select(sources, [], [], _TICK_S if self._running else 1.0)
            if self._channel.fileno() in ready and not self._receive():
                return
            for pipe in ready:
                if pipe in self._running:
                    self._finish(pipe)
            self._watch()
            self._start_waiting()

    def _receive(self) -> bool:
        """Take one request; return whether there will be more."""
        request, sockets, _, _ = socket.recv_fds(self._channel, 1 << 17, 1)
        if not request:
            return False
        if sockets:
            self._short.append(_Comparison(request, socket.socket(fileno=sockets[0])))
        return True

    def _start_waiting(self) -> None:
        for waiting, is_long in ((self._short, False), (self._long, True)):
            while waiting and self._has_room(is_long=is_long):
                comparison = waiting.popleft()
                if comparison.is_wanted():
                    self._start(comparison)
                else:
                    comparison.reply.close()
        # A queue is in the order of coming, so only its head can be too old.
        while self._short and _age(self._short[0].queued) > QUEUE_S:
            self._short.popleft().answer(Reply.BUSY)
        # Usual answers never come here: this lane is full of what policies wrote.
        while self._long and _age(self._long[0].queued) > QUEUE_S:
            self._long.popleft().answer(Reply.LIMITS)

    def _has_room(self, *, is_long: bool) -> bool:
        same_lane = [one for one in self._running.values() if one.is_long == is_long]
        return len(same_lane) < LANES[is_long]

    def _start(self, comparison: _Comparison) -> None:
        reading, writing = os.pipe()
        comparison.started = time.monotonic()
        comparison.pid = os.fork()
        if comparison.pid == 0:
            self._work(comparison.request, writing)
        os.close(writing)
        self._running[reading] = comparison
        if comparison.is_long:
            _make_nice(comparison)

    def _work(self, request: bytes, pipe: int) -> None:
        """Compare in this child process, and end it."""
        try:
            _end_with_parent(self._pid)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))
            truths, answer = json.loads(request)
            os.write(pipe, compare(truths, answer).encode())
        except (MemoryError, RecursionError):
            os.write(pipe, Reply.LIMITS.encode())
        finally:
            os._exit(0)

    def _finish(self, pipe: int) -> None:
        """Pass on what a child replied, or why it did not."""
        comparison = self._running.pop(pipe)
        written = os.read(pipe, 64)
        status = _end(pipe, comparison)
        if written:
            comparison.answer(Reply(written.decode()))
        elif comparison.is_ended or os.WTERMSIG(status) in _OWN_FAULT:
            comparison.answer(Reply.LIMITS)
        else:
            comparison.answer(Reply.LOST)

    def _watch(self) -> None:
        """Move what is not done to the long lane, and end what has had its time."""
        for pipe, comparison in list(self._running.items()):
            cpu_s = comparison.cpu_s()
            if cpu_s > SHORT_S and not comparison.is_long:
                self._move(pipe, comparison)
            elif cpu_s > CPU_S or _age(comparison.started) > WALL_S:
                # One that got next to no CPU time is the machine's fault.
                comparison.is_ended = comparison.is_long
                os.kill(comparison.pid, signal.SIGKILL)

    def _move(self, pipe: int, comparison: _Comparison) -> None:
        has_room = self._has_room(is_long=True)
        comparison.is_long = True
        if has_room:
            _make_nice(comparison)
            return
        del self._running[pipe]
        _end(pipe, comparison)
        comparison.queued = time.monotonic()
        self._long.append(comparison)


def _end(pipe: int, comparison: _Comparison) -> int:
    """End a child, which may have ended, and return its wait status."""
    os.close(pipe)
    with contextlib.suppress(ProcessLookupError):
        os.kill(comparison.pid, signal.SIGKILL)
    return os.waitpid(comparison.pid, 0)[1]


def _make_nice(comparison: _Comparison) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, comparison.pid, NICENESS)


def _age(moment: float) -> float:
    return time.monotonic() - moment


def compare(truths: list[str], answer: str) -> Reply:
    """Return whether the answer equals one of the truths; all of them share one budget."""
    from math_verify import verify

    expected = [_parsed(truth) for truth in truths]
    if not all(expected):
        return Reply.UNREADABLE
    given = _parsed(answer)
    for truth in expected:
        # No time limit of math-verify's own: it needs signals in a main thread.
        if verify(truth, given, timeout_seconds=None):
            return Reply.EQUAL
    return Reply.DIFFERENT


def _parsed(text: str) -> list[object]:
    from math_verify import parse

    parsed: list[object] = parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)
    return parsed


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Serve the socket on stdin."""
    import logging

    logging.disable(logging.WARNING)  # math-verify warns that it has no time limit
    channel = socket.socket(fileno=os.dup(0))
    # What the parser and sympy learn here, every child knows.
    for truth, answer in _WARM_UP:
        compare([truth], answer)
    gc.freeze()
    Server(channel, int(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
