"""Do each piece of work in a short-lived process: the server behind `axpo.limited.client`.

    python -P SCRIPT PARENT_PID        stdin: a socket of packets

The script imports what the work needs and calls `serve`. The server forks a child for each piece of
work, under limits of CPU time and memory, so work that cannot be finished ends alone.

There are two lanes, so that nobody waits for such work. Each piece begins in the short lane. One
that is not done after `SHORT_S` of CPU time moves to the long lane, behind the others by its
niceness. If that lane is full, it is ended, and begins again when there is room.

A packet is one byte with two descriptors: a file with the request as JSON, and a socket for the
reply. The reply is `{"outcome": ..., "result": ...}`.

Nothing outlives the process that started the server. The server ends when its socket closes or its
parent's pid changes, and the kernel kills the children with the server.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

SHORT_S = 0.2
"""Seconds of CPU time in the short lane. Usual comparisons of formulas take 0.01 to 0.1."""

CPU_S = 2
"""Seconds of CPU time of a piece of work in all."""

MEMORY = 64 << 20
"""Bytes that work may use beyond those of the server. Usual comparisons of formulas use 3 MiB."""

WALL_S = 30.0
"""Seconds that work may take on a machine that is busy otherwise."""

QUEUE_S = 20.0
"""Seconds that work may wait for its turn."""

LANES = (64, 8)
"""Pieces of work at the same time in the short and in the long lane."""

NICENESS = 5
"""Of the long lane."""

MAX_REPLY = 4000
"""Bytes. A pipe takes so many in one piece."""

_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# What an input can do to its process: it ran out of time, stack or memory.
_OWN_FAULT = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)

Function: TypeAlias = Callable[[Any], Any]
"""From the request to the result, both JSON."""


class Outcome(StrEnum):
    """How a piece of work ended."""

    DONE = "done"
    LIMITS = "limits"  # it took too much time or memory, or raised: the input's own fault
    BUSY = "busy"  # no turn within `QUEUE_S`
    LOST = "lost"  # the machine ended it, or gave it too little time


_TOO_MUCH = json.dumps({"outcome": Outcome.LIMITS}).encode()


def serve(function: Function) -> None:
    """Serve the socket on stdin until the parent is gone.

    Args:
        function: does one piece of work, in a child process. If it raises, the input was too much.
    """
    channel = socket.socket(fileno=os.dup(0))
    gc.freeze()
    _Server(channel, int(sys.argv[1]), function).serve()


@dataclass
class _Work:
    """One piece of work, and the process that does it."""

    request: int  # a file in memory
    reply: socket.socket
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0
    pid: int = 0
    is_long: bool = False
    is_ended: bool = False  # by the server, for its limits

    def answer(self, outcome: Outcome) -> None:
        self.pass_on(json.dumps({"outcome": outcome}).encode())

    def pass_on(self, reply: bytes) -> None:
        # Whoever asked may be gone.
        with contextlib.suppress(OSError):
            self.reply.send(reply)
        self.close()

    def close(self) -> None:
        self.reply.close()
        os.close(self.request)

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


class _Server:
    """Fork a child for each piece of work; never compute anything itself."""

    def __init__(self, channel: socket.socket, parent: int, function: Function) -> None:
        self._channel = channel
        self._parent = parent
        self._function = function
        self._pid = os.getpid()
        self._memory = _address_space() + MEMORY
        self._short: deque[_Work] = deque()  # waiting for the short lane
        self._long: deque[_Work] = deque()
        self._running: dict[int, _Work] = {}  # by the pipe on which the child replies

    def serve(self) -> None:
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
        packet, descriptors, _, _ = socket.recv_fds(self._channel, 1, 2)
        if not packet:
            return False
        request, reply = descriptors
        self._short.append(_Work(request, socket.socket(fileno=reply)))
        return True

    def _start_waiting(self) -> None:
        for waiting, is_long in ((self._short, False), (self._long, True)):
            while waiting and self._has_room(is_long=is_long):
                work = waiting.popleft()
                if work.is_wanted():
                    self._start(work)
                else:
                    work.close()
        # A queue is in the order of coming, so only its head can be too old.
        while self._short and _age(self._short[0].queued) > QUEUE_S:
            self._short.popleft().answer(Outcome.BUSY)
        # Usual work never comes here: this lane is full of what strangers wrote.
        while self._long and _age(self._long[0].queued) > QUEUE_S:
            self._long.popleft().answer(Outcome.LIMITS)

    def _has_room(self, *, is_long: bool) -> bool:
        same_lane = [work for work in self._running.values() if work.is_long == is_long]
        return len(same_lane) < LANES[is_long]

    def _start(self, work: _Work) -> None:
        reading, writing = os.pipe()
        work.started = time.monotonic()
        work.pid = os.fork()
        if work.pid == 0:
            self._do(work.request, writing)
        os.close(writing)
        self._running[reading] = work
        if work.is_long:
            _make_nice(work)

    def _do(self, request: int, pipe: int) -> None:
        """Do the work in this child process, and end it."""
        try:
            _end_with_parent(self._pid)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))
            written = os.pread(request, os.fstat(request).st_size, 0)
            result = self._function(json.loads(written))
            reply = json.dumps({"outcome": Outcome.DONE, "result": result}).encode()
            os.write(pipe, reply if len(reply) <= MAX_REPLY else _TOO_MUCH)
        except Exception:  # the input was too much for it, whatever it raised
            # Ready-made: there may be no memory left.
            os.write(pipe, _TOO_MUCH)
        finally:
            os._exit(0)

    def _finish(self, pipe: int) -> None:
        """Pass on what a child replied, or why it did not."""
        work = self._running.pop(pipe)
        reply = os.read(pipe, MAX_REPLY)
        status = _end(pipe, work)
        if reply:
            work.pass_on(reply)
        elif work.is_ended or os.WIFEXITED(status) or os.WTERMSIG(status) in _OWN_FAULT:
            work.answer(Outcome.LIMITS)
        else:
            work.answer(Outcome.LOST)

    def _watch(self) -> None:
        """Move what is not done to the long lane, and end what has had its time."""
        for pipe, work in list(self._running.items()):
            cpu_s = work.cpu_s()
            if cpu_s > SHORT_S and not work.is_long:
                self._move(pipe, work)
            elif cpu_s > CPU_S or _age(work.started) > WALL_S:
                # One that got next to no CPU time is the machine's fault.
                work.is_ended = work.is_long
                os.kill(work.pid, signal.SIGKILL)

    def _move(self, pipe: int, work: _Work) -> None:
        has_room = self._has_room(is_long=True)
        work.is_long = True
        if has_room:
            _make_nice(work)
            return
        del self._running[pipe]
        _end(pipe, work)
        work.queued = time.monotonic()
        self._long.append(work)


def _end(pipe: int, work: _Work) -> int:
    """End a child, which may have ended, and return its wait status."""
    os.close(pipe)
    with contextlib.suppress(ProcessLookupError):
        os.kill(work.pid, signal.SIGKILL)
    return os.waitpid(work.pid, 0)[1]


def _make_nice(work: _Work) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, work.pid, NICENESS)


def _age(moment: float) -> float:
    return time.monotonic() - moment


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
