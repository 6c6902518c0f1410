"""Compare mathematical expressions, by math-verify in processes of their own.

What a policy wrote can keep sympy busy for ever, or Python itself: `9^{9^{9^9}}` is one
multiplication that no thread can interrupt. So each comparison runs in a process of its own, under
limits (`axpo.tasks.comparing`). An answer that exceeds them is wrong. Other answers do not wait for
it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from axpo.tasks import comparing
from axpo.tasks.comparing import Reply

LONGEST = 2000
"""Characters of an expression."""

DEEPEST = 40
"""Brackets inside each other."""

WAIT_S = comparing.QUEUE_S + comparing.WALL_S + 5
"""Seconds in which a server that works has replied."""

# What Python needs to start and to find its packages. No secret is among them.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")
_COMMAND = (sys.executable, "-P", comparing.__file__)
_BRACKETS = re.compile(r"[(\[{]|([)\]}])")
_FAILURES = {
    Reply.BUSY: "too many comparisons wait",
    Reply.LOST: "the machine ended the comparison, or gave it no time",
}


class Comparer:
    """Compare expressions through one server, from any number of threads."""

    def __init__(self, command: Sequence[str] = _COMMAND, wait_s: float = WAIT_S) -> None:
        self._command, self._wait_s = command, wait_s
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def compare(self, truths: Sequence[str], answer: str) -> Reply:
        """Return how the comparison of an answer with each of its truths ended.

        Raises:
            TimeoutError: the machine was too busy, or the server is frozen.
            RuntimeError: the machine ended the comparison or the server.
        """
        request = json.dumps([list(truths), answer]).encode()
        # A server that ended was killed by the machine: another one is asked once.
        reply = self._ask(request) or self._ask(request)
        if not reply:
            raise RuntimeError("math: the process that compares has ended")
        outcome = Reply(reply.decode())
        if outcome in _FAILURES:
            raise RuntimeError(f"math: {_FAILURES[outcome]}")
        return outcome

    def close(self) -> None:
        """End the server and what it compares."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> bytes:
        """Return the reply; empty if the server ended."""
        mine, theirs = socket.socketpair()
        with mine:
            with theirs:
                server = self._send(request, theirs)
            mine.settimeout(self._wait_s)
            try:
                reply = mine.recv(64)
            except TimeoutError:
                self._forget(server)  # one that works would have replied
                raise TimeoutError(f"math: no reply for {self._wait_s:g} s") from None
        if not reply:
            self._forget(server)
        return reply

    def _forget(self, server: subprocess.Popen[bytes] | None) -> None:
        """End a server that does not work, if no other thread has replaced it yet."""
        with self._lock:
            if self._child is server:
                self._end()

    def _send(self, request: bytes, reply: socket.socket) -> subprocess.Popen[bytes] | None:
        """Send a request, and return the server that has it."""
        with self._lock:
            try:
                self._write(request, reply)
            except (BrokenPipeError, ConnectionResetError):  # it has died meanwhile
                self._end()
                self._write(request, reply)
            return self._child

    def _write(self, request: bytes, reply: socket.socket) -> None:
        if self._channel is None:
            self._start()
        assert self._channel is not None
        socket.send_fds(self._channel, [request], [reply.fileno()])

    def _start(self) -> None:
        # Packets, so that threads share the socket without cutting up each other's requests.
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(self._wait_s)
        known = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with theirs:
            self._child = subprocess.Popen(
                [*self._command, str(os.getpid())],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                env=known,
                start_new_session=True,  # Ctrl-C is for the trainer, which then closes the socket
            )
        self._channel = mine

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._channel = self._child = None


_comparer = Comparer()


def equal(truth: str | Sequence[str], answer: str) -> bool:
    """Return whether the answer equals the truth, or one of several.

    An answer that is too long, too deep, or cannot be compared within the limits does not.

    Args:
        truth: LaTeX or plain text, without \\boxed.
        answer: likewise.

    Raises:
        TimeoutError: the machine was too busy.
        RuntimeError: the machine ended the comparison, or a truth is no expression.
    """
    truths = [truth] if isinstance(truth, str) else truth
    if not within_limits(answer):
        return False
    reply = _comparer.compare(truths, answer)
    if reply is Reply.UNREADABLE:
        found = ", ".join(truths)[:200]
        raise RuntimeError(f"math: {found}: no expression in the question's answer")
    return reply is Reply.EQUAL


def check(truth: str) -> None:
    """Raise ValueError if no answer can equal this truth.

    It must be an expression, and equal to itself within the limits.
    """
    shown = truth[:80]
    if not truth.strip(" $"):
        raise ValueError("expected a formula, found none")
    if not within_limits(truth):
        raise ValueError(
            f"expected a formula of at most {LONGEST} characters and {DEEPEST} brackets inside "
            f"each other, found {shown!r}"
        )
    reply = _comparer.compare([truth], truth)
    if reply is Reply.UNREADABLE:
        raise ValueError(f"expected a formula, found {shown!r}")
    if reply is not Reply.EQUAL:
        raise ValueError(f"no answer can match: {shown!r} cannot be compared with itself")


def within_limits(text: str) -> bool:
    """Return whether an expression is short and flat enough to be compared."""
    if len(text) > LONGEST:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth = max(depth - 1, 0) if bracket[1] else depth + 1
        if depth > DEEPEST:
            return False
    return True
