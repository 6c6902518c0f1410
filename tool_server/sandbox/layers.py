"""Which layers of isolation this machine has, and whether they are enough."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from landlockpy import abi_version

from tool_server.sandbox import syscalls
from tool_server.sandbox.cgroups import Groups, NoGroups
from tool_server.sandbox.jail import (
    BUBBLEWRAP_ADVICE,
    CAP_SETFCAP,
    CAP_SETGID,
    CAP_SETUID,
    CAP_SYS_ADMIN,
    DEVICES,
    Toolbox,
    bubblewrap,
    capable,
    command,
    drop,
)
from tool_server.sandbox.options import Isolation, Layer, PythonOptions
from tool_server.tool import ToolUnavailable

SCOPES_ABI = 6
"""From this version of Landlock (Linux 6.12) on, it keeps signals and abstract sockets inside.

Before, only namespaces do.
"""

USERNS_ADVICE = (
    "unprivileged user namespaces must be allowed. Docker: --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined, or a profile that allows unshare, mount and pivot_root; "
    "Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile "
    "for bwrap; Debian and RHEL: sysctl user.max_user_namespaces above 0"
)
LANDLOCK_ADVICE = (
    "a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK and landlock in the boot parameter lsm="
)
PLAIN_USER_ADVICE = (
    "start the server as an ordinary user, who needs no capability at all (docker run --user 1000; "
    "Kubernetes: runAsUser: 1000, capabilities: {drop: [ALL]}), or keep Docker's default ones"
)
CGROUP_ADVICE = (
    "each call still has RLIMITs and counters of its own. To have its memory of every kind "
    "counted: as root with /sys/fs/cgroup writable, or as an ordinary user in a delegated group "
    "(systemd-run --user --scope -p Delegate=yes)"
)
MOST_USERS = 1024
"""User ids from `jail_uid` on that calls may have at once, without namespaces."""

SECCOMP_ADVICE = "a kernel from 4.14 on with CONFIG_SECCOMP_FILTER"


@dataclass(frozen=True)
class Row:
    """One line of the table that `axpo tools check` prints."""

    layer: str
    present: bool
    detail: str  # version or path; if it is missing: what to do
    needed: bool = True  # without it the sandbox is not what SECURITY.md promises

    @property
    def state(self) -> str:
        """Return one word for whether it is there."""
        if self.present:
            return "present"
        return "MISSING" if self.needed else "absent"


def check(options: PythonOptions) -> list[Row]:
    """Return every layer, and what this machine has of it.

    This starts short-lived processes and leaves nothing behind.
    """
    rows = [_toolbox(options), _bubblewrap(), _user(options)]
    # The namespaces are tried by starting a jail, which needs all of these.
    if all(row.present for row in rows):
        rows.append(_namespaces(options))
    else:
        rows.append(Row(Layer.NAMESPACES, False, "not tried: needs what is missing above"))
    return [*rows, _landlock(), _seccomp(), _cgroup()]


def isolation(options: PythonOptions) -> tuple[Isolation, Toolbox]:
    """Return the layers to use here, and the toolbox.

    Raises:
        ToolUnavailable: a layer is missing that `allow_missing` does not name. The message has the
            table of all layers.
    """
    rows = check(options)
    missing = {row.layer for row in rows if row.needed and not row.present}
    # bubblewrap only makes the namespaces.
    if Layer.NAMESPACES in options.allow_missing:
        missing.discard("bubblewrap")
    _refuse_unexpected(missing, options, rows)
    abi = 0 if Layer.LANDLOCK in missing else abi_version()
    namespaces = Layer.NAMESPACES not in missing
    # Landlock must then keep the code from other processes, and its user must be nobody else.
    if not namespaces and (abi < SCOPES_ABI or os.geteuid() != 0):
        raise ToolUnavailable(
            f"without namespaces the sandbox needs Landlock of version {SCOPES_ABI} (here: {abi}) "
            "and root, to run the code as a user of its own; `allow_missing` cannot change that\n"
            f"{table(rows)}"
        )
    if not namespaces:
        _refuse_known_users(options)
    toolbox = Toolbox.find(options)
    # There is no outer bubblewrap, which shows the jail's user what only root may enter.
    if not namespaces and Toolbox.find(options, drop(options)) != toolbox:
        raise ToolUnavailable(
            f"without namespaces user {options.jail_uid} must be able to read the toolbox and its "
            f"interpreter, {', '.join(toolbox.paths)}: make one in a folder that everybody reads, "
            "from the system's Python, and name it in the option `toolbox`"
        )
    return Isolation(namespaces=namespaces, landlock=abi), toolbox


def _refuse_known_users(options: PythonOptions) -> None:
    """Without namespaces each call that runs is a user of its own, from `jail_uid` on."""
    first = options.jail_uid
    last = first + MOST_USERS
    known = [entry.pw_name for entry in pwd.getpwall() if first <= entry.pw_uid <= last]
    if known:
        raise ToolUnavailable(
            f"without namespaces calls run as users {first} to {last}, of which one is {known[0]}: "
            "set jail_uid to the first of so many ids that nobody has"
        )


def _refuse_unexpected(missing: set[str], options: PythonOptions, rows: Sequence[Row]) -> None:
    unexpected = missing - set(options.allow_missing)
    if unexpected:
        raise ToolUnavailable(
            f"the sandbox is not safe here, it lacks: {', '.join(sorted(unexpected))}\n"
            f"{table(rows)}\n"
            "`allow_missing` in the tool's options accepts a weaker sandbox, layer by layer: "
            f"{', '.join(Layer)}"
        )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, one a line."""
    width = max(len(row.layer) for row in rows)
    return "\n".join(f"  {row.layer:{width}}  {row.state:7}  {row.detail}" for row in rows)


def _toolbox(options: PythonOptions) -> Row:
    try:
        return Row("toolbox", True, Toolbox.find(options).python)
    except ToolUnavailable as error:
        return Row("toolbox", False, str(error))


def _bubblewrap() -> Row:
    program = bubblewrap()
    if program is None:
        return Row("bubblewrap", False, BUBBLEWRAP_ADVICE)
    try:
        asked = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Row("bubblewrap", False, f"{program} does not run: {error}; {BUBBLEWRAP_ADVICE}")
    return Row("bubblewrap", True, f"{asked.stdout.strip()}, {program}")


def _user(options: PythonOptions) -> Row:
    """Return whether the user of the jail owns nothing.

    It could change what it owns: Landlock does not cover chmod.
    """
    if os.geteuid() != 0:
        return Row("user", True, f"{os.geteuid()}, in a user namespace of its own")
    if not capable(CAP_SETUID, CAP_SETGID):
        return Row("user", False, f"root without CAP_SETUID and CAP_SETGID: {PLAIN_USER_ADVICE}")
    if not capable(CAP_SYS_ADMIN) and not capable(CAP_SETFCAP):
        lacking = "root without CAP_SYS_ADMIN needs CAP_SETFCAP"
        return Row("user", False, f"{lacking}: {PLAIN_USER_ADVICE}")
    user = options.jail_uid
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(user).pw_name
        advice = "set jail_uid to an id that nobody has"
        return Row("user", False, f"{user} is {name}: {advice}")
    owned = [path for path in DEVICES if os.stat(path).st_uid == user]
    if owned:
        advice = "set jail_uid to an id that owns nothing"
        return Row("user", False, f"{user} owns {', '.join(owned)}: {advice}")
    return Row("user", True, f"{user}, owns nothing")


def _namespaces(options: PythonOptions) -> Row:
    """Start a jail that does nothing."""
    arguments = command(options, Isolation(), Toolbox.find(options))
    arguments[-1] = "pass"  # in place of the zygote
    try:
        tried = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, cwd="/"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Row(Layer.NAMESPACES, False, f"{error}; {USERNS_ADVICE}")
    if tried.returncode != 0:
        said = tried.stderr.strip() or tried.returncode
        return Row(Layer.NAMESPACES, False, f"{said}; {USERNS_ADVICE}")
    return Row(Layer.NAMESPACES, True, "user, mount, pid, network, ipc, uts")


def _landlock() -> Row:
    abi = abi_version()
    return Row(Layer.LANDLOCK, abi > 0, f"version {abi}" if abi else LANDLOCK_ADVICE)


def _seccomp() -> Row:
    try:
        program = syscalls.program()
    except ToolUnavailable as error:
        return Row("seccomp", False, str(error))
    # The filter kills what uses another ABI, so the kernel must know that action.
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "kill_process" not in actions.read_text():
        return Row("seccomp", False, f"{os.strerror(errno.ENOSYS)}: {SECCOMP_ADVICE}")
    allowed, instructions = syscalls.COUNT, len(program) // 8
    return Row("seccomp", True, f"{allowed} system calls allowed, {instructions} instructions")


def _cgroup() -> Row:
    """Make groups as a server does, and remove them."""
    try:
        groups = Groups.open()
    except NoGroups as error:
        return Row("cgroup", False, f"{error}; {CGROUP_ADVICE}", needed=False)
    groups.close()
    return Row("cgroup", True, groups.detail)
