"""Ask a server of `axpo.limited.server` to do work, from any number of threads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

from axpo.limited.server import MAX_REPLY, QUEUE_S, WALL_S, Outcome

WAIT_S = QUEUE_S + WALL_S + 5
"""Seconds in which a server that works has replied."""

# What Python needs to start. No secret is among them.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


class OverLimits(Exception):
    """The work took more time or memory than it gets, or raised: the input's own fault."""


class Limited:
    """A script that does work under limits. It starts with the first request."""

    def __init__(self, name: str, script: str, wait_s: float = WAIT_S) -> None:
        """Make a client.

        Args:
            name: of the work, for messages.
            script: a file of Python that calls `axpo.limited.server.serve`.
            wait_s: seconds without a reply after which the server is taken for frozen.
        """
        self._name, self._script, self._wait_s = name, script, wait_s
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(self, request: Any) -> Any:
        """Return the result of one piece of work.

        Args:
            request: JSON.

        Raises:
            OverLimits: the input took too much.
            TimeoutError: the server is frozen.
            RuntimeError: the machine was too busy, or ended the work or the server.
        """
        written = json.dumps(request).encode()
        # A server that ended was killed by the machine: another one is asked once.
        received = self._ask(written) or self._ask(written)
        if not received:
            raise RuntimeError(f"{self._name}: the process that does it has ended")
        reply = json.loads(received)
        match Outcome(reply["outcome"]):
            case Outcome.DONE:
                return reply["result"]
            case Outcome.LIMITS:
                raise OverLimits(f"{self._name}: more time or memory than allowed")
            case Outcome.BUSY:
                raise RuntimeError(f"{self._name}: too many wait")
            case Outcome.LOST:
                raise RuntimeError(f"{self._name}: the machine ended it, or gave it no time")

    def close(self) -> None:
        """End the server and its work."""
        with self._lock:
            self._end()

    def _ask(self, written: bytes) -> bytes:
        """Return the reply; empty if the server ended."""
        # In a file, so that work that begins again can read it again.
        request = os.memfd_create(self._name)
        mine, theirs = socket.socketpair()
        try:
            os.write(request, written)
            with theirs:
                server = self._send(request, theirs)
            mine.settimeout(self._wait_s)
            try:
                reply = mine.recv(MAX_REPLY)
            except TimeoutError:
                self._forget(server)  # one that works would have replied
                raise TimeoutError(f"{self._name}: no reply for {self._wait_s:g} s") from None
        finally:
            mine.close()
            os.close(request)
        if not reply:
            self._forget(server)
        return reply

    def _send(self, request: int, reply: socket.socket) -> subprocess.Popen[bytes] | None:
        """Send a request, and return the server that has it."""
        with self._lock:
            try:
                self._write(request, reply)
            except (BrokenPipeError, ConnectionResetError):  # it has died meanwhile
                self._end()
                self._write(request, reply)
            return self._child

    def _write(self, request: int, reply: socket.socket) -> None:
        if self._channel is None:
            self._start()
        assert self._channel is not None
        socket.send_fds(self._channel, [b"?"], [request, reply.fileno()])

    def _forget(self, server: subprocess.Popen[bytes] | None) -> None:
        """End a server that does not work, if no other thread has replaced it yet."""
        with self._lock:
            if self._child is server:
                self._end()

    def _start(self) -> None:
        # Packets, so that threads share the socket without cutting up each other's requests.
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.settimeout(self._wait_s)
        known = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        known["PYTHONPATH"] = os.pathsep.join(sys.path)
        with theirs:
            self._child = subprocess.Popen(
                # -P: the script's folder is no place to import from.
                [sys.executable, "-P", self._script, str(os.getpid())],
                stdin=theirs.fileno(),
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
