"""Escapes that a jail tries before it serves anybody, inside a call. An attempt returns what it got hold of, or fails: contained."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

PTRACE_ATTACH, CLONE_NEWUSER, IPC_CREAT = 16, 0x10000000, 0o1000
OWN_DESCRIPTORS = 6
"""0 to 3, and the sandbox's own copies of where output goes."""


def run(facts: dict[str, Any]) -> None:
    """Prints {attempt: what it got, or None} as JSON. `facts`: a file, a port and a process of the server's, and the limits."""
    tried = {}
    for attempt in attempts(facts):
        try:
            got = attempt()
        except (OSError, ValueError, MemoryError):
            got = None
        tried[attempt.__name__.replace("_", " ")] = None if got is None else str(got)[:200]
    print(json.dumps({"tried": tried}))


def attempts(facts: dict[str, Any]) -> list[Callable[[], object]]:
    def environment() -> object:
        return sorted(set(os.environ) - set(facts["environment"])) or None

    def a_file_of_the_host() -> object:
        return open(facts["canary"]).read()

    def passwords() -> object:
        return open("/etc/passwd").read()

    def processes_of_the_host() -> object:
        return os.listdir("/proc")

    def the_root_folder() -> object:
        return os.listdir("/")

    def writing_to_the_interpreter() -> object:
        return open(os.path.join(os.path.dirname(os.__file__), "canary.py"), "w").name

    def a_new_process() -> object:
        if os.fork() == 0:
            os._exit(0)
        return "fork"

    def a_program() -> object:
        return os.posix_spawn("/bin/true", ["true"], {})

    def a_network_connection() -> object:
        return socket.create_connection(("127.0.0.1", facts["port"]), timeout=1)

    def a_signal_to_the_server() -> object:
        os.kill(facts["pid"], 0)
        return facts["pid"]

    def tracing_the_server() -> object:
        return None if libc.ptrace(PTRACE_ATTACH, facts["pid"], 0, 0) else "ptrace"

    def a_mount() -> object:
        return None if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) else "mount"

    def a_user_namespace() -> object:
        return None if libc.unshare(CLONE_NEWUSER) else "unshare"

    def memory_outside_the_limit() -> object:
        return os.memfd_create("x")

    def shared_memory() -> object:
        return None if libc.shmget(0, 4096, 0o600 | IPC_CREAT) == -1 else "shmget"

    def too_much_memory() -> object:
        return len(bytearray(facts["memory"]))

    def a_higher_limit() -> object:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "RLIMIT_AS"

    def endless_cpu_time() -> object:
        return None if resource.getrlimit(resource.RLIMIT_CPU)[1] > 0 else "RLIMIT_CPU"

    def inherited_descriptors() -> object:
        return [fd for fd in range(OWN_DESCRIPTORS, 64) if _is_open(fd)] or None

    def capabilities() -> object:
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        return None if libc.capget(header, data) or not any(data) else list(data)

    def devices_of_this_user() -> object:
        return [
            name
            for name in ("null", "zero", "urandom")
            if os.stat(f"/dev/{name}").st_uid == os.getuid()
        ] or None

    def too_much_disk() -> object:
        for number in range(4):
            with open(f"fill{number}", "wb") as file:
                file.write(bytes(facts["disk"] // 2))
        return 2 * facts["disk"]

    tried: list[Callable[[], object]] = [
        environment,
        a_file_of_the_host,
        passwords,
        processes_of_the_host,
        writing_to_the_interpreter,
    ]
    tried += [
        a_new_process,
        a_program,
        a_network_connection,
        a_signal_to_the_server,
        tracing_the_server,
        a_mount,
        a_user_namespace,
    ]
    tried += [
        memory_outside_the_limit,
        shared_memory,
        too_much_memory,
        a_higher_limit,
        endless_cpu_time,
    ]
    tried += [inherited_descriptors, capabilities, devices_of_this_user]
    if facts["namespaces"]:
        tried.append(too_much_disk)
    if facts["landlock"]:
        tried.append(the_root_folder)
    return tried


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
