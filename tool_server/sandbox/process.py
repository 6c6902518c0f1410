"""One jail as the server sees it: starts it, sends it calls, reads what comes out under limits, and notices at once when it dies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from tool_server.sandbox import syscalls
from tool_server.sandbox.jail import Toolbox, command, readable
from tool_server.sandbox.options import (
    MAX_FILES,
    MAX_HEADER,
    MAX_OUTPUT,
    MIB,
    RGB,
    Isolation,
    PythonOptions,
    limits,
)
from tool_server.tool import Pixels, ToolUnavailable

START_S = 120.0
"""The imports take 3 s on an idle machine."""

GRACE_S = 5.0
"""From the order to kill a call until its end is reported. A zygote that is slower than that is given up, with all its calls."""

MESSAGE_BYTES = 1 << 16
CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
MAX_ASPECT = 200
"""Qwen's image processors raise above it."""


@dataclass
class Finished:
    """What is known of a call that ended, by the server's own account; `error` alone is the child's word."""

    begun: int  # codes that were started; 0: the isolation itself failed
    status: int  # as of wait(2)
    cpu_s: float
    output: bytes
    killed: str = ""  # why the server killed it: wall, output, result; or ""
    complete: bool = False  # the result came, and nothing else
    error: bool = False
    images: list[Pixels] = field(default_factory=list)


class Jail:
    """A zygote and its calls. Lives on one event loop. `on_death` is called once, when it ended for whatever reason."""

    def __init__(
        self,
        options: PythonOptions,
        isolation: Isolation,
        toolbox: Toolbox,
        on_death: Callable[[Jail], None],
    ) -> None:
        self._options, self._isolation, self._toolbox = options, isolation, toolbox
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._ended: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._work: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reaped: asyncio.Future[int] | None = None
        self._dead = asyncio.Event()
        self.pid = 0
        """Of the zygote, as seen from here."""
        self.alive = False

    @property
    def in_flight(self) -> int:
        return len(self._ended)

    async def start(self) -> None:
        """Raises ToolUnavailable with what the jail's own programs said."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        self._control = ours
        if not self._isolation.namespaces:
            self._work = tempfile.mkdtemp(prefix="axpo-python-")
            if os.geteuid() == 0 and not self._isolation.bare:
                os.chown(self._work, self._options.jail_uid, self._options.jail_uid)
        with tempfile.TemporaryFile() as log:
            try:
                with theirs:
                    self._process = subprocess.Popen(
                        [
                            *command(self._options, self._isolation, self._toolbox),
                            str(theirs.fileno()),
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                        cwd="/",
                    )
                async with asyncio.timeout(START_S):
                    await self._receive("hello")
                    await self._loop.sock_sendall(ours, json.dumps(self._config()).encode())
                    await self._receive("ready")
            except (TimeoutError, OSError, EOFError) as error:
                self.kill()
                log.seek(0)
                said = (
                    log.read(4096).decode(errors="replace").strip()
                    or str(error)
                    or type(error).__name__
                )
                self._release()
                raise ToolUnavailable(f"the sandbox does not start: {said}") from error
            except BaseException:
                self.kill()
                self._release()
                raise
        self.alive = True
        self._loop.add_reader(ours, self._read)

    async def call(
        self, codes: Sequence[str], images: Sequence[Pixels], seen: Sequence[int]
    ) -> Finished:
        """Runs the last of `codes` after the others; the i-th sees the first `seen[i]` images.

        Raises ToolUnavailable if the jail dies; cancelling kills the call.
        """
        if self._control is None or not self.alive:
            raise ToolUnavailable("the sandbox has ended")
        number = next(self._numbers)
        killed: list[str] = []

        def stop(why: str) -> None:
            killed.append(why)
            self._send({"kill": number})

        with contextlib.ExitStack() as held:
            try:
                ended = self._ended[number] = self._loop.create_future()
                held.callback(self._ended.pop, number)
                with (
                    contextlib.ExitStack() as given
                ):  # to the child; a copy that stays here would keep the pipes from ending
                    inputs = _inputs(codes, images, seen)
                    given.callback(os.close, inputs)
                    output_fd, output_write = _pipe(given)
                    output = held.enter_context(_Output(self._loop, output_fd, stop))
                    result_fd, result_write = _pipe(given)
                    result = held.enter_context(
                        _Result(self._loop, result_fd, stop, len(codes), self._options)
                    )
                    message = {
                        "call": number,
                        "limits": limits(self._options, len(codes)),
                        "disk": self._options.disk_mib * MIB
                        + sum(image.nbytes + MIB for image in images),
                        "files": MAX_FILES,
                    }
                    socket.send_fds(
                        self._control,
                        [json.dumps(message).encode()],
                        [inputs, output_write, result_write],
                    )
                end = await self._end(
                    asyncio.gather(ended, output.closed, result.closed), len(codes), stop
                )
            except TimeoutError as error:
                self.kill()
                raise ToolUnavailable("the sandbox does not answer") from error
            except OSError as error:
                raise ToolUnavailable(f"the sandbox takes no call: {error}") from error
        if "error" in end:
            raise ToolUnavailable(f"the sandbox cannot fork: {end['error']}")
        return Finished(
            begun=result.begun,
            status=end["status"],
            cpu_s=end["cpu_s"],
            output=bytes(output.data),
            killed=killed[0] if killed else "",
            complete=result.complete,
            error=result.error,
            images=result.images(),
        )

    async def _end(
        self, everything: asyncio.Future[Any], codes: int, stop: Callable[[str], None]
    ) -> dict[str, Any]:
        """How the call ended, once its pipes did, too; by then killed if need be. Raises TimeoutError where the zygote does not answer."""
        # A cancelled call does not look at how its jail died.
        everything.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._options.wall_s * codes):
                return (await asyncio.shield(everything))[0]
        except TimeoutError:
            stop("wall")
            async with asyncio.timeout(GRACE_S):
                return (await asyncio.shield(everything))[0]
        except asyncio.CancelledError:
            stop("cancelled")
            await asyncio.wait({everything}, timeout=GRACE_S)
            if not everything.done():
                self.kill()
            raise

    def kill(self) -> None:
        """Ends the jail and everything in it."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        elif self._process is not None:
            self._process.kill()
        if self._control is not None and not self.alive:
            self._control.close()

    async def gone(self) -> None:
        """After `kill`: returns when everything has ended, bubblewrap included."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._dead.wait()
                if self._reaped is not None:
                    await asyncio.shield(self._reaped)

    def _config(self) -> dict[str, Any]:
        return {
            "namespaces": self._isolation.namespaces,
            "landlock": self._isolation.landlock,
            "seccomp": base64.b64encode(syscalls.program()).decode()
            if self._isolation.seccomp
            else "",
            "bare": self._isolation.bare,
            "readable": readable(self._toolbox),
            "work": self._work or "/tmp",
            "limits": list(limits(self._options, 1)),
            "caps": {
                "figures": self._options.max_figures,
                "pixels": self._options.max_figure_pixels,
            },
        }

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # then the jail is dying, and its death will be noticed
            assert self._control is not None
            self._control.send(json.dumps(message).encode())

    async def _receive(self, expected: str) -> None:
        assert self._control is not None
        readable = asyncio.Event()
        self._loop.add_reader(self._control, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._control)
        message, ancillary, _, _ = self._control.recvmsg(
            MESSAGE_BYTES, socket.CMSG_SPACE(CREDENTIALS.size)
        )
        if not message:
            raise EOFError
        if expected not in json.loads(message):
            raise OSError(f"the zygote said {message[:200]!r}")
        self.pid = CREDENTIALS.unpack(ancillary[0][2])[0]

    def _read(self) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            return self._died()
        end = json.loads(message)
        future = self._ended.get(end["ended"])
        if future is not None and not future.done():
            future.set_result(end)

    def _died(self) -> None:
        assert self._control is not None
        self._loop.remove_reader(self._control)
        self.alive = False
        for future in self._ended.values():
            if not future.done():
                future.set_exception(ToolUnavailable("the sandbox died during the call"))
        self._release()
        self._on_death(self)

    def _release(self) -> None:
        self._dead.set()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            # Reaps bubblewrap; a moment after the zygote, so not on the event loop.
            self._reaped = self._loop.run_in_executor(None, self._process.wait)
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)


def _inputs(codes: Sequence[str], images: Sequence[Pixels], seen: Sequence[int]) -> int:
    """A sealed memfd: the child reads it, and nobody can change or grow it."""
    header = json.dumps(
        {
            "codes": list(zip(codes, seen, strict=True)),
            "shapes": [image.shape[:2] for image in images],
        }
    ).encode()
    fd = os.memfd_create("axpo-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(struct.pack("<I", len(header)) + header)
            for image in images:
                file.write(np.ascontiguousarray(image).data)
        fcntl.fcntl(
            fd,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _pipe(given: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that is read here without waiting, and written by the child; `given` closes its end for writing."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    given.callback(os.close, write)
    return read, write


class _Pipe:
    """Reads a pipe to its end into `data`, until `accepts` says that more is not wanted."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, stop: Callable[[str], None]
    ) -> None:
        self._loop, self._fd, self._stop = loop, fd, stop
        self.data = bytearray()
        self.closed: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fault(self) -> str:
        """Why the call must be killed for what it has written so far; empty if it need not."""
        raise NotImplementedError

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self.closed.done():
            self.closed.set_result(None)

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        self.data += chunk
        if not chunk:
            self.close()
        elif why := self.fault():
            self._stop(why)
            self.close()


class _Output(_Pipe):
    def fault(self) -> str:
        return "output" if len(self.data) > MAX_OUTPUT else ""


class _Result(_Pipe):
    """`\\0` per code begun, then `<I length><JSON {error, images: [[height, width], ...]}><raw RGB>`, checked before it is stored."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        stop: Callable[[str], None],
        codes: int,
        options: PythonOptions,
    ) -> None:
        super().__init__(loop, fd, stop)
        self._codes, self._options = codes, options
        self._shapes: list[tuple[int, int]] = []
        self._body = -1  # where the pixels start; negative until the header is there
        self._expected = -1
        self.error = False

    @property
    def begun(self) -> int:
        return min(self._codes, len(self.data))

    @property
    def complete(self) -> bool:
        return self._body >= 0 and len(self.data) == self._expected

    def images(self) -> list[Pixels]:
        images, at = [], self._body
        for height, width in self._shapes if self.complete else ():
            size = height * width * RGB
            images.append(np.frombuffer(self.data, np.uint8, size, at).reshape(height, width, RGB))
            at += size
        return images

    def fault(self) -> str:
        start = self._codes + 4
        if self._body < 0 and len(self.data) >= start:
            (length,) = struct.unpack_from("<I", self.data, self._codes)
            if length > MAX_HEADER:
                return "result"
            if len(self.data) >= start + length:
                if not self._header(bytes(self.data[start : start + length])):
                    return "result"
                self._body = start + length
                self._expected = self._body + sum(
                    height * width * RGB for height, width in self._shapes
                )
        return "result" if 0 <= self._expected < len(self.data) else ""

    def _header(self, text: bytes) -> bool:
        try:
            header = json.loads(text)
            self.error = bool(header["error"])
            self._shapes = [(height, width) for height, width in header["images"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        return len(self._shapes) <= self._options.max_figures and all(
            self._valid(*shape) for shape in self._shapes
        )

    def _valid(self, height: Any, width: Any) -> bool:
        if type(height) is not int or type(width) is not int or min(height, width) < 1:
            return False
        return height * width <= self._options.max_figure_pixels and max(
            height, width
        ) <= MAX_ASPECT * min(height, width)
