"""One jail as the server sees it.

The server starts it, sends it calls, reads what comes out under limits, and notices at once when
it dies.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import IO, TypeAlias

from axpo.scratch import Scratch, remove_left
from tool_server.images import MAX_ASPECT
from tool_server.sandbox import syscalls
from tool_server.sandbox.channels import OutputPipe, ResultPipe, Work, open_inputs, open_pipe
from tool_server.sandbox.inside import protocol
from tool_server.sandbox.jail import Toolbox, command, readable
from tool_server.sandbox.options import MAX_FILES, MIB, Isolation, PythonOptions, limits
from tool_server.sandbox.places import OutOfMemory, Place, Places
from tool_server.tool import Pixels, ToolUnavailable

START_S = 120.0
"""The imports take 3 s on an idle machine."""

GRACE_S = 5.0
"""From the order to kill a call until its end is reported.

A zygote that is slower than that is given up, with all its calls.
"""

MAX_SAID = 4096
"""Bytes of what the jail's own programs wrote that an error shows."""

FIRST_TO_GO = "1000"
"""In oom_score_adj, which children inherit."""

CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

Everything: TypeAlias = asyncio.Future[tuple[protocol.Ended, None, None]]
"""Done when the call has ended and both of its pipes are closed."""


@dataclass
class Finished:
    """What the server measured of a call that ended; `error` alone is the child's word."""

    begun: int  # codes that were started; 0: the isolation itself failed
    status: int  # as of wait(2)
    cpu_s: float
    output: bytes
    wall_s: float = 0.0
    out_of_memory: OutOfMemory | None = None  # evidence that the kernel killed it for that
    killed: str = ""  # why the server killed it: wall, output, result; or ""
    complete: bool = False  # the result came, and nothing else
    error: bool = False
    images: list[Pixels] = field(default_factory=list)


class Jail:
    """A zygote and its calls.

    It lives on one event loop. `on_death` is called once, when the jail has ended for whatever
    reason.
    """

    def __init__(
        self,
        options: PythonOptions,
        isolation: Isolation,
        toolbox: Toolbox,
        places: Places,
        on_death: Callable[[Jail], None],
    ) -> None:
        self._options, self._isolation, self._toolbox = options, isolation, toolbox
        self._places = places
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._ended: dict[int, asyncio.Future[protocol.Ended]] = {}
        self._work: Scratch | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._reaped: asyncio.Future[int] | None = None
        self._dead = asyncio.Event()
        self.pid = 0
        """Of the zygote, as seen from here."""
        self.alive = False

    @property
    def in_flight(self) -> int:
        """Return the number of calls that run."""
        return len(self._ended)

    async def start(self) -> None:
        """Start the zygote and wait until it is ready.

        Raises:
            ToolUnavailable: it does not start; with what the jail's own programs said.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The kernel then says who sent a message: that is the zygote's pid.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        self._control = ours
        self._make_work_folder()
        with tempfile.TemporaryFile() as log:
            try:
                # Our copy of their end must go: else a dead zygote would not close the socket.
                with theirs:
                    self._process = self._launch(theirs, log)
                await self._greet(ours)
            except (TimeoutError, OSError, EOFError) as error:
                self.kill()
                said = _said(log) or str(error) or type(error).__name__
                self._release()
                raise ToolUnavailable(f"the sandbox does not start: {said}") from error
            except BaseException:
                self.kill()
                self._release()
                raise
        self.alive = True
        self._loop.add_reader(ours, self._read)

    async def call(self, work: Work, wall_s: float | None = None) -> Finished:
        """Run the last code after the others. Cancelling kills the call.

        Args:
            work: the codes and their images.
            wall_s: seconds that all codes may take together; None: what the options say.

        Raises:
            ToolUnavailable: the jail dies, or does not take the call.
        """
        if self._control is None or not self.alive:
            raise ToolUnavailable("the sandbox has ended")
        if wall_s is None:
            wall_s = self._options.wall_s * len(work.codes)
        # Numbers are never used again: a late kill must not hit another call.
        number = next(self._numbers)
        killed: list[str] = []

        def stop(why: str) -> None:
            killed.append(why)
            self._send({"kill": number})

        with contextlib.ExitStack() as held:
            started = time.monotonic()
            try:
                place = held.enter_context(self._places.take(_given_bytes(work)))
                ended = self._ended[number] = self._loop.create_future()
                held.callback(self._ended.pop, number)
                output, result = self._hand_over(number, work, place, stop, held)
                everything = asyncio.gather(ended, output.closed, result.closed)
                end = await self._end(everything, wall_s, stop)
            except TimeoutError as error:
                self.kill()
                raise ToolUnavailable("the sandbox does not answer") from error
            except OSError as error:
                raise ToolUnavailable(f"the sandbox takes no call: {error}") from error
            if "error" in end:
                raise ToolUnavailable(f"the sandbox cannot fork: {end['error']}")
            finished = _finished(end, output, result)
            finished.wall_s = time.monotonic() - started
            finished.killed = killed[0] if killed else ""
            if os.WIFSIGNALED(finished.status) and os.WTERMSIG(finished.status) == SIGKILL:
                finished.out_of_memory = place.out_of_memory()
            return finished

    def kill(self) -> None:
        """End the jail and everything in it."""
        # The zygote is pid 1 of the jail: the kernel ends the rest with it. Before its first
        # message there is only the program that starts it.
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, SIGKILL)
        elif self._process is not None:
            self._process.kill()
        # In a jail that lives, the end of the socket is how its death is noticed.
        if self._control is not None and not self.alive:
            self._control.close()

    async def gone(self) -> None:
        """Wait, after `kill`, until everything has ended, bubblewrap included."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._dead.wait()
                if self._reaped is not None:
                    await asyncio.shield(self._reaped)

    def _make_work_folder(self) -> None:
        """Make the folder of the calls' working directories; with namespaces they need none.

        Those that killed servers left are removed.
        """
        if self._isolation.namespaces:
            return
        remove_left()
        self._work = Scratch()
        # Each call is a user of its own: it makes its folder here, and sees no other one.
        if os.geteuid() == 0 and not self._isolation.bare:
            self._work.share()

    def _launch(self, theirs: socket.socket, log: IO[bytes]) -> subprocess.Popen[bytes]:
        control = str(theirs.fileno())
        return subprocess.Popen(
            [*command(self._options, self._isolation, self._toolbox), control],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            cwd="/",
        )

    async def _greet(self, control: socket.socket) -> None:
        """Configure the zygote and wait until it has imported everything."""
        async with asyncio.timeout(START_S):
            await self._receive("hello")
            await self._loop.sock_sendall(control, json.dumps(self._config()).encode())
            await self._receive("ready")

    def _config(self) -> protocol.Config:
        seccomp = b""
        if self._isolation.seccomp:
            seccomp = base64.b64encode(syscalls.program())
        return {
            "namespaces": self._isolation.namespaces,
            "landlock": self._isolation.landlock,
            "seccomp": seccomp.decode(),
            "bare": self._isolation.bare,
            "readable": readable(self._toolbox),
            "work": str(self._work.path) if self._work else "/tmp",
            "limits": list(limits(self._options, 1)),
            "caps": {
                "figures": self._options.max_figures,
                "pixels": self._options.max_figure_pixels,
                "aspect": MAX_ASPECT,
            },
        }

    def _hand_over(
        self,
        number: int,
        work: Work,
        place: Place,
        stop: Callable[[str], None],
        held: contextlib.ExitStack,
    ) -> tuple[OutputPipe, ResultPipe]:
        """Send a call to the zygote and return the pipes that its child writes.

        `held` closes the pipes. What the child gets is closed here: a copy that stays would keep
        the pipes from ending.
        """
        assert self._control is not None
        codes = len(work.codes)
        with contextlib.ExitStack() as given:
            inputs = open_inputs(work)
            given.callback(os.close, inputs)
            output_fd, output_write = open_pipe(given)
            output = held.enter_context(OutputPipe(self._loop, output_fd, stop))
            result_fd, result_write = open_pipe(given)
            result = held.enter_context(
                ResultPipe(self._loop, result_fd, stop, codes=codes, options=self._options)
            )
            groups = []
            for file in place.group.joining() if place.group else ():
                groups.append(os.open(file, os.O_WRONLY))
                given.callback(os.close, groups[-1])
            message: protocol.Call = {
                "call": number,
                "user": place.user,
                "limits": limits(self._options, codes, _given_bytes(work)),
                # The images that the call is given come on top of its own files.
                "disk": self._options.disk_mib * MIB + _given_bytes(work),
                "files": MAX_FILES,
            }
            socket.send_fds(
                self._control,
                [json.dumps(message).encode()],
                [inputs, output_write, result_write, *groups],
            )
        return output, result

    async def _end(
        self, everything: Everything, wall_s: float, stop: Callable[[str], None]
    ) -> protocol.Ended:
        """Return how the call ended, once its pipes did, too. Kill it if it takes too long.

        Raises:
            TimeoutError: the zygote does not answer.
        """
        # A cancelled call does not look at how its jail died. asyncio would complain.
        everything.add_done_callback(lambda done: done.cancelled() or done.exception())
        # A kill is an order to the zygote. Its effect is waited for, so that what is reported is
        # how the call really ended. `shield` keeps the futures for that second wait.
        try:
            async with asyncio.timeout(wall_s):
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

    def _send(self, message: Mapping[str, int]) -> None:
        # If this fails the jail is dying, and its death will be noticed.
        with contextlib.suppress(OSError):
            assert self._control is not None
            self._control.send(json.dumps(message).encode())

    async def _receive(self, expected: str) -> None:
        """Wait for one message of the start, and note the zygote's pid.

        Raises:
            EOFError: the zygote closed the socket.
            OSError: it said something else.
        """
        assert self._control is not None
        readable = asyncio.Event()
        self._loop.add_reader(self._control, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._control)
        message, ancillary, _, _ = self._control.recvmsg(
            protocol.MESSAGE_BYTES, socket.CMSG_SPACE(CREDENTIALS.size)
        )
        if not message:
            raise EOFError
        if expected not in json.loads(message):
            raise OSError(f"the zygote said {message[:200]!r}")
        _, _, credentials = ancillary[0]
        self.pid, _, _ = CREDENTIALS.unpack(credentials)
        # If the machine runs out of memory, the kernel takes a jail before engines and ranks.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/oom_score_adj").write_text(FIRST_TO_GO)

    def _read(self) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(protocol.MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:  # as good as its end
            message = b""
        if not message:
            return self._died()
        end: protocol.Ended = json.loads(message)
        # A call that was given up is not waited for any more.
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
            self._work.close()
            self._work = None


def _finished(end: protocol.Ended, output: OutputPipe, result: ResultPipe) -> Finished:
    return Finished(
        begun=result.begun,
        status=end["status"],
        cpu_s=end["cpu_s"],
        output=bytes(output.data),
        complete=result.complete,
        error=result.error,
        images=result.images(),
    )


def _given_bytes(work: Work) -> int:
    """Return what the images that a call is given take, at most, as files."""
    return sum(image.nbytes + MIB for image in work.images)


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read(MAX_SAID).decode(errors="replace").strip()
