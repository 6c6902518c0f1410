"""The zygote: pid 1 of the jail, everything imported, one fork per call.

Single-threaded. It reads calls from a SOCK_SEQPACKET socket (JSON, with file descriptors), reports how each child ended, kills a
child on request, and exits when the socket closes: as pid 1 it takes the whole jail with it, so nothing outlives the server.
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
from typing import Any, NoReturn

from . import confine, execute, probe  # noqa: F401  (the probe is imported here, as a call cannot read this folder)

RESULT_FD = 3
"""In a child, the pipe of the result."""

MESSAGE_BYTES = 1 << 16
FDS_PER_CALL = 3  # request, output, result


class Zygote:
    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        self._control = control
        self._config = config
        self._namespaces: bool = config["namespaces"]
        self._seccomp = (
            confine.Seccomp(base64.b64decode(config["seccomp"])) if config["seccomp"] else None
        )
        self._self_fd = os.pidfd_open(os.getpid())
        self._poll = select.poll()
        self._calls: dict[int, tuple[int, int]] = {}  # pidfd -> (id of the call, pid)

    def serve(self) -> None:
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._control.fileno():
                    self._ended(fd)
                elif not self._read():
                    return

    def _read(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, FDS_PER_CALL)
        if not message:
            return False
        request = json.loads(message)
        if "kill" in request:
            for pidfd, (number, _) in self._calls.items():
                if number == request["kill"]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
        try:
            pid = self._fork(request, fds)
        except OSError as error:
            self._send({"ended": request["call"], "error": str(error)})
            return True
        finally:
            for fd in fds:
                os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._calls[pidfd] = request["call"], pid
        self._poll.register(pidfd, select.POLLIN)
        return True

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
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

    def _child(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        try:
            null = os.open("/dev/null", os.O_RDONLY)
            # Up and out of the way first, so that no source is overwritten before it was copied.
            inputs, output, result = (os.dup(fd) for fd in fds)
            for source, target in (
                (null, 0),
                (output, 1),
                (output, 2),
                (result, RESULT_FD),
                (inputs, RESULT_FD + 1),
            ):
                os.dup2(source, target, inheritable=False)
            os.closerange(RESULT_FD + 2, 1 << 30)
            codes, images = execute.read_inputs(RESULT_FD + 1)
            os.close(RESULT_FD + 1)
            self._confine(request, images, codes[0][1])
        except BaseException as error:
            os.write(1, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        execute.run(codes, images, RESULT_FD, self._config["caps"])

    def _confine(self, request: dict[str, Any], images: list[Any], seen: int) -> None:
        work: str = self._config["work"]
        if self._namespaces:
            confine.unshare(
                confine.CLONE_NEWNS
                | confine.CLONE_NEWNET
                | confine.CLONE_NEWIPC
                | confine.CLONE_NEWUTS
            )
            confine.mount_tmpfs(work, request["disk"], request["files"])
        else:
            confine.die_with_parent()
            work = f"{work}/{request['call']}"
            os.mkdir(work, 0o700)
            os.environ.update(HOME=work, TMPDIR=work)
        os.chdir(work)
        execute.write_images(images, seen)
        confine.set_limits(request["limits"])
        if not self._config["bare"]:
            confine.drop_capabilities()
        if self._config["landlock"]:
            confine.landlock(self._config["landlock"], self._config["readable"], [work]).restrict()
        if self._seccomp is not None:
            self._seccomp.load()

    def _ended(self, pidfd: int) -> None:
        number, pid = self._calls.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status, used = os.wait4(pid, 0)
        if not self._namespaces:
            shutil.rmtree(f"{self._config['work']}/{number}", ignore_errors=True)
        self._send(
            {
                "ended": number,
                "status": status,
                "cpu_s": used.ru_utime + used.ru_stime,
                "kib": used.ru_maxrss,
            }
        )

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(
            OSError
        ):  # the server is gone, and this process goes at the next poll
            self._control.send(json.dumps(message).encode())


def main(control_fd: int) -> None:
    """`control_fd`: the socket that bubblewrap handed on."""
    started = time.monotonic()
    control = socket.socket(fileno=control_fd)
    control.send(b'{"hello": true}')
    message = control.recv(MESSAGE_BYTES)
    if not message:
        return
    config = json.loads(message)
    if not config["namespaces"]:
        confine.die_with_parent()
    execute.warm_up(config["caps"])
    confine.rehearse(config["limits"])
    for _ in range(2 if config["landlock"] else 0):
        # 41 ms in the first call of a process that has not built rules before, 1.3 ms in one that has.
        confine.landlock(config["landlock"], config["readable"], [config["work"]]).close()
    # The pages of everything imported so far stay shared with the children: no collection touches them again.
    gc.collect()
    gc.disable()
    gc.freeze()
    control.send(json.dumps({"ready": time.monotonic() - started}).encode())
    Zygote(control, config).serve()
