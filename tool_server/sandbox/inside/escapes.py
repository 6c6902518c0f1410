"""The escapes that a jail tries, inside a call, before it serves anybody.

An attempt is one function with the decorator `attempt`. It returns what it got hold of. If it
returns None or fails, the jail held. The list exists once, here; the server asks it for the names
that a complete report must have.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

_libc = ctypes.CDLL(None, use_errno=True)

PTRACE_ATTACH = 16
CLONE_NEWUSER = 0x10000000
IPC_CREAT = 0o1000
CLOSE_RANGE = 436  # of every architecture
CLOSE_RANGE_UNSHARE = 2
CAPABILITY_VERSION_3 = 0x20080522

OWN_DESCRIPTORS = 6
"""0 to 3, and the sandbox's own copies of where output goes."""

SHOWN = 200
"""Characters of what an attempt got hold of that the report shows."""


class Facts(TypedDict):
    """What an attempt may know: things of the server's to reach for, and the limits of the call."""

    canary: str  # a file that every user may read
    port: int  # TCP, listening on the host
    pid: int  # of the server
    environment: list[str]  # variables that a call may have
    disk: int  # bytes
    memory: int  # bytes
    threads: int
    namespaces: bool  # layers that this jail has
    landlock: int


Escape: TypeAlias = Callable[[Facts], object]
"""Return what it got hold of. None or an error: it was held."""

Layer: TypeAlias = Literal["namespaces", "landlock"]
"""A layer that a jail may lack."""


@dataclass(frozen=True)
class Attempt:
    """One escape to try."""

    name: str
    run: Escape
    needs: Layer | None  # the layer without which it gets out

    def applies(self, facts: Facts) -> bool:
        """Return whether this jail is expected to hold it."""
        return self.needs is None or bool(facts[self.needs])


ATTEMPTS: list[Attempt] = []
"""In the order in which they are tried."""


def attempt(needs: Layer | None = None) -> Callable[[Escape], Escape]:
    """Return a decorator that adds a function to `ATTEMPTS`, under the function's name."""

    def add(function: Escape) -> Escape:
        name = function.__name__.replace("_", " ")
        ATTEMPTS.append(Attempt(name, function, needs))
        return function

    return add


def names(facts: Facts) -> list[str]:
    """Return the attempts that a complete report of this jail has."""
    return [tried.name for tried in ATTEMPTS if tried.applies(facts)]


def run(facts: Facts) -> None:
    """Try every escape that applies; print {attempt: what it got, or None} as JSON."""
    report = {tried.name: _got(tried, facts) for tried in ATTEMPTS if tried.applies(facts)}
    print(json.dumps({"tried": report}))


def _got(tried: Attempt, facts: Facts) -> str | None:
    try:
        got = tried.run(facts)
    except (OSError, ValueError, MemoryError):
        return None
    return None if got is None else str(got)[:SHOWN]


@attempt()
def environment(facts: Facts) -> object:
    """See variables that the jail did not set."""
    return sorted(set(os.environ) - set(facts["environment"])) or None


@attempt()
def a_file_of_the_host(facts: Facts) -> object:
    """Read a file that every user of the host may read."""
    return open(facts["canary"]).read()


@attempt()
def passwords(facts: Facts) -> object:
    """Read the host's users."""
    return open("/etc/passwd").read()


@attempt()
def processes_of_the_host(facts: Facts) -> object:
    """List processes."""
    return os.listdir("/proc")


@attempt()
def writing_to_the_interpreter(facts: Facts) -> object:
    """Put a module where the next call would import it."""
    return open(os.path.join(os.path.dirname(os.__file__), "canary.py"), "w").name


@attempt()
def a_new_process(facts: Facts) -> object:
    """Fork."""
    if os.fork() == 0:
        os._exit(0)
    return "fork"


@attempt()
def a_program(facts: Facts) -> object:
    """Start a program."""
    return os.posix_spawn("/bin/true", ["true"], {})


@attempt()
def a_network_connection(facts: Facts) -> object:
    """Connect to a port of the host."""
    return socket.create_connection(("127.0.0.1", facts["port"]), timeout=1)


@attempt()
def a_socket_of_another_family(facts: Facts) -> object:
    """Let the kernel make a socket that is none of unix, by asking for a pair."""
    _libc.socketpair(socket.AF_INET, socket.SOCK_STREAM, 0, (ctypes.c_int * 2)())
    return None if ctypes.get_errno() == errno.EPERM else "AF_INET"


@attempt()
def a_datagram_to_a_name(facts: Facts) -> object:
    """Send to a named socket, from one that a pair gives."""
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ours.sendto(b"x", "/nowhere")
    except PermissionError:
        return None
    except OSError as error:  # the kernel has looked for it
        return error
    return "sendto"


@attempt()
def a_signal_to_the_server(facts: Facts) -> object:
    """Send the server a signal."""
    os.kill(facts["pid"], 0)
    return facts["pid"]


@attempt()
def tracing_the_server(facts: Facts) -> object:
    """Read and change the server's memory as a debugger does."""
    return None if _libc.ptrace(PTRACE_ATTACH, facts["pid"], 0, 0) else "ptrace"


@attempt()
def a_mount(facts: Facts) -> object:
    """Mount a file system."""
    return None if _libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) else "mount"


@attempt()
def a_user_namespace(facts: Facts) -> object:
    """Become root in a user namespace."""
    return None if _libc.unshare(CLONE_NEWUSER) else "unshare"


@attempt()
def memory_outside_the_limit(facts: Facts) -> object:
    """Make a memfd, which the limit of address space does not count."""
    return os.memfd_create("x")


@attempt()
def shared_memory(facts: Facts) -> object:
    """Make System V shared memory, which the limit of address space does not count."""
    return None if _libc.shmget(0, 4096, 0o600 | IPC_CREAT) == -1 else "shmget"


@attempt()
def too_much_memory(facts: Facts) -> object:
    """Allocate as much as the limit: with what the interpreter has, that is more."""
    return len(bytearray(facts["memory"]))


@attempt()
def a_higher_limit(facts: Facts) -> object:
    """Lift the limit of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "RLIMIT_AS"


@attempt()
def a_lower_limit(facts: Facts) -> object:
    """Lower the limit of CPU time, to end as if the machine had ended the call."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    return "RLIMIT_CPU"


@attempt()
def another_table_of_descriptors(facts: Facts) -> object:
    """Get a table of its own, which has a limit of its own."""
    # A range in which nothing is open.
    return None if _libc.syscall(CLOSE_RANGE, 64, 64, CLOSE_RANGE_UNSHARE) else "close_range"


@attempt()
def endless_threads(facts: Facts) -> object:
    """Find no limit of threads."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    return None if 0 <= hard <= facts["threads"] else hard


@attempt()
def endless_cpu_time(facts: Facts) -> object:
    """Find no limit of CPU time."""
    return None if resource.getrlimit(resource.RLIMIT_CPU)[1] > 0 else "RLIMIT_CPU"


@attempt()
def inherited_descriptors(facts: Facts) -> object:
    """Find a descriptor that the server or the zygote left open."""
    return [fd for fd in range(OWN_DESCRIPTORS, 64) if _is_open(fd)] or None


@attempt()
def capabilities(facts: Facts) -> object:
    """Find a capability."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    return None if _libc.capget(header, data) or not any(data) else list(data)


@attempt()
def devices_of_this_user(facts: Facts) -> object:
    """Change the rights of a device: Landlock does not cover chmod."""
    os.chmod("/dev/null", stat.S_IMODE(os.stat("/dev/null").st_mode))
    return "chmod"


@attempt(needs="namespaces")
def too_much_disk(facts: Facts) -> object:
    """Write twice what the working directory may hold."""
    for number in range(4):
        with open(f"fill{number}", "wb") as file:
            file.write(bytes(facts["disk"] // 2))
    return 2 * facts["disk"]


@attempt(needs="landlock")
def the_root_folder(facts: Facts) -> object:
    """List the jail's own root."""
    return os.listdir("/")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
