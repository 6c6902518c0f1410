"""The zygote: pid 1 of the jail. It has imported everything, and forks one child per call.

It has a single thread. It reads calls from the control socket (`protocol.py`), reports how each
child ended, and kills a child on request. It exits when the socket closes. As pid 1 it takes the
whole jail with it, so nothing outlives the server.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

# `escapes` is imported here because a call, which uses it, cannot read this folder.
from . import confine, escapes, execute, preload, protocol  # noqa: F401

if TYPE_CHECKING:
    from PIL import Image

RESULT_FD = 3
"""In a child, the pipe of the result."""

INPUTS_FD = 4
"""In a child, the memfd of the inputs, until they are read."""

FDS_PER_CALL = 3  # inputs, output, result
GROUPS_PER_CALL = 3  # at most: one for each controller
MOST_FDS = 1 << 30


@dataclass(frozen=True)
class Child:
    """A call that runs."""

    call: int
    pid: int
    user: int  # whose it is; 0: the zygote's


REMOVER = -1
"""In place of the number of a call: a process that removes the folder of one that has ended."""


class Zygote:
    """Fork a child for each call that the server sends, until the server is gone."""

    def __init__(self, control: socket.socket, config: protocol.Config) -> None:
        self._control = control
        self._config = config
        self._namespaces = config["namespaces"]
        self._seccomp: confine.Seccomp | None = None
        if config["seccomp"]:
            self._seccomp = confine.Seccomp(base64.b64decode(config["seccomp"]))
        self._self_fd = os.pidfd_open(os.getpid())
        self._poll = select.poll()
        self._children: dict[int, Child] = {}  # by pidfd

    # The policy's code runs below these functions: serve, _start, _fork, _child. Each further one
    # would cost it a level of Python's recursion limit.

    def serve(self) -> None:
        """Serve until the control socket closes."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                # A pidfd is readable when its process has ended.
                if fd != self._control.fileno():
                    self._reap(fd)
                    continue
                message, fds, _, _ = socket.recv_fds(
                    self._control, protocol.MESSAGE_BYTES, FDS_PER_CALL + GROUPS_PER_CALL
                )
                if not message:
                    return
                request = json.loads(message)
                if "kill" in request:
                    self._kill(request["kill"])
                else:
                    self._start(request, fds)

    def _kill(self, call: int) -> None:
        for pidfd, child in self._children.items():
            if child.call == call:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _start(self, request: protocol.Call, fds: list[int]) -> None:
        try:
            pid = self._fork(request, fds)
        except OSError as error:
            self._send({"ended": request["call"], "error": str(error)})
            return
        finally:
            for fd in fds:
                os.close(fd)
        self._watch(Child(request["call"], pid, request["user"]))

    def _watch(self, child: Child) -> None:
        # The pid cannot be another process's by now: only `_reap` frees it.
        pidfd = os.pidfd_open(child.pid)
        self._children[pidfd] = child
        self._poll.register(pidfd, select.POLLIN)

    def _fork(self, request: protocol.Call, fds: list[int]) -> int:
        """Return the pid of a child that runs the call.

        With namespaces the child is pid 1 of a pid namespace of its own: the zygote unshares
        before the fork, and goes back to its own namespace after it.
        """
        if not self._namespaces:
            pid = os.fork()
            if pid == 0:
                self._child(request, fds)
            return pid
        confine.unshare(confine.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._child(request, fds)
        finally:
            confine.setns(self._self_fd, confine.CLONE_NEWPID)
        return pid

    def _child(self, request: protocol.Call, fds: list[int]) -> NoReturn:
        try:
            # Before it makes anything that the groups are to count.
            confine.join(fds[FDS_PER_CALL:])
            _arrange_descriptors(fds[:FDS_PER_CALL])
            codes, images = execute.read_inputs(INPUTS_FD)
            os.close(INPUTS_FD)
            _, seen = codes[0]
            self._confine(request, images, seen)
        except BaseException as error:
            # No BEGIN was written, so the server knows that this is not the code's output.
            os.write(1, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        execute.run(codes, images, RESULT_FD, self._config["caps"])

    def _confine(self, request: protocol.Call, images: list[Image.Image], seen: int) -> None:
        """Isolate this child, which sees the first `seen` images. The order of the steps matters.

        The images are written before the limits are set: a given image may be larger than a file
        of the call may be. Seccomp comes last: it forbids what the other steps do.
        """
        work = self._own_place(request)
        os.chdir(work)
        execute.write_images(images, seen)
        confine.set_limits(request["limits"])
        if not self._config["bare"]:
            confine.drop_capabilities()
        if self._config["landlock"]:
            confine.landlock(self._config["landlock"], self._config["readable"], [work]).restrict()
        if self._seccomp is not None:
            self._seccomp.load()

    def _own_place(self, request: protocol.Call) -> str:
        """Give this child a working directory, and namespaces or a user of its own.

        The kernel counts threads and timers per user and user namespace.
        """
        work = self._config["work"]
        if self._namespaces:
            confine.unshare(
                confine.CLONE_NEWNS
                | confine.CLONE_NEWNET
                | confine.CLONE_NEWIPC
                | confine.CLONE_NEWUTS
            )
            confine.mount_tmpfs(work, request["disk"], request["files"])
            # After the mount: in the new one nobody is known, so no files could be made. To the
            # code, every file is nobody's.
            confine.unshare(confine.CLONE_NEWUSER)
            return work
        if request["user"]:
            confine.become(request["user"])
        confine.die_with_parent()
        work = f"{work}/{request['call']}"
        os.mkdir(work, 0o700)
        os.environ.update(HOME=work, TMPDIR=work)
        return work

    def _reap(self, pidfd: int) -> None:
        child = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, used = os.wait4(child.pid, 0)
        if child.call == REMOVER:
            return
        if not self._namespaces:
            self._remove_folder(child)
        cpu_s = used.ru_utime + used.ru_stime
        self._send({"ended": child.call, "status": status, "cpu_s": cpu_s})

    def _remove_folder(self, child: Child) -> None:
        """Remove the working directory of a call that has ended, as its user.

        Nobody waits for it: there may be very many files.
        """
        folder = f"{self._config['work']}/{child.call}"
        if not child.user:
            return shutil.rmtree(folder, ignore_errors=True)
        remover = os.fork()
        if remover:
            return self._watch(Child(REMOVER, remover, 0))
        try:
            confine.become(child.user)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os._exit(0)

    def _send(self, message: protocol.Ended) -> None:
        # If the server is gone, this process goes at the next poll.
        with contextlib.suppress(OSError):
            self._control.send(json.dumps(message).encode())


def _arrange_descriptors(fds: list[int]) -> None:
    """Leave a child stdin, stdout, stderr, the result and the inputs, and close everything else."""
    null = os.open("/dev/null", os.O_RDONLY)
    # Up and out of the way first, so that no source is overwritten before it was copied.
    inputs, output, result = [os.dup(fd) for fd in fds]
    os.dup2(null, 0, inheritable=False)
    os.dup2(output, 1, inheritable=False)
    os.dup2(output, 2, inheritable=False)
    os.dup2(result, RESULT_FD, inheritable=False)
    os.dup2(inputs, INPUTS_FD, inheritable=False)
    os.closerange(INPUTS_FD + 1, MOST_FDS)


def main(control_fd: int) -> None:
    """Start the zygote on the control socket that bubblewrap handed on."""
    started = time.monotonic()
    control = socket.socket(fileno=control_fd)
    control.send(b'{"hello": true}')
    message = control.recv(protocol.MESSAGE_BYTES)
    if not message:
        return
    config: protocol.Config = json.loads(message)
    if not config["namespaces"]:
        confine.die_with_parent()
    _prepare(config)
    control.send(json.dumps({"ready": time.monotonic() - started}).encode())
    Zygote(control, config).serve()


def _prepare(config: protocol.Config) -> None:
    """Do once, before the first fork, what each call would do again."""
    preload.warm_up(config["caps"])
    confine.rehearse(config["limits"])
    if config["landlock"]:
        # In a process that has not built rules before, they take 41 ms, else 1.3 ms.
        for _ in range(2):
            confine.landlock(config["landlock"], config["readable"], [config["work"]]).close()
    # The pages of everything imported so far stay shared with the children: no collection touches
    # them again.
    gc.collect()
    gc.disable()
    gc.freeze()
