"""Which layers of isolation this machine has, and whether they are enough."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from landlockpy import abi_version

from tool_server.sandbox import syscalls
from tool_server.sandbox.jail import BUBBLEWRAP_ADVICE, DEVICES, Toolbox, bubblewrap, command, drop
from tool_server.sandbox.options import Isolation, Layer, PythonOptions
from tool_server.tool import ToolUnavailable

SCOPES_ABI = 6
"""Landlock keeps signals and abstract sockets inside from this version (Linux 6.12) on; before, only namespaces do."""

USERNS_ADVICE = (
    "unprivileged user namespaces must be allowed. Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or a "
    "profile that allows unshare, mount and pivot_root; Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor "
    "profile for bwrap; Debian and RHEL: sysctl user.max_user_namespaces above 0"
)
LANDLOCK_ADVICE = (
    "a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK and landlock in the boot parameter lsm="
)


@dataclass(frozen=True)
class Row:
    """One line of the table that `axpo tools check` prints."""

    layer: str
    present: bool
    detail: str  # version or path; where missing: what to do


def check(options: PythonOptions) -> list[Row]:
    """Every layer with what this machine has of it. It starts short-lived processes and leaves nothing behind."""
    rows = [_toolbox(options), _bubblewrap(), _user(options)]
    ready = all(row.present for row in rows)
    rows.append(
        _namespaces(options)
        if ready
        else Row(Layer.NAMESPACES, False, "not tried: needs what is missing above")
    )
    return [*rows, _landlock(), _seccomp()]


def isolation(options: PythonOptions) -> tuple[Isolation, Toolbox]:
    """The layers to use here. Raises ToolUnavailable with a table where one is missing that `allow_missing` does not name."""
    rows = check(options)
    missing = {row.layer for row in rows if not row.present}
    if Layer.NAMESPACES in options.allow_missing:
        missing -= {"bubblewrap"}
    if unexpected := missing - set(options.allow_missing):
        raise ToolUnavailable(
            f"the sandbox is not safe here, it lacks: {', '.join(sorted(unexpected))}\n{table(rows)}\n"
            f"`allow_missing` in the tool's options accepts a weaker sandbox, layer by layer: {', '.join(Layer)}"
        )
    abi = 0 if Layer.LANDLOCK in missing else abi_version()
    if Layer.NAMESPACES in missing and (abi < SCOPES_ABI or os.geteuid() != 0):
        raise ToolUnavailable(
            f"without namespaces the sandbox needs Landlock of version {SCOPES_ABI} (here: {abi}) and root, to run the code as a user of "
            f"its own; `allow_missing` cannot change that\n{table(rows)}"
        )
    toolbox = Toolbox.find(options)
    if Layer.NAMESPACES in missing and Toolbox.find(options, drop(options)) != toolbox:
        raise ToolUnavailable(
            f"without namespaces user {options.jail_uid} must be able to read the toolbox and its interpreter, {', '.join(toolbox.paths)}: "
            "make one in a folder that everybody reads, from the system's Python, and name it in the option `toolbox`"
        )
    return Isolation(namespaces=Layer.NAMESPACES not in missing, landlock=abi), toolbox


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.layer) for row in rows)
    return "\n".join(
        f"  {row.layer:{width}}  {'present' if row.present else 'MISSING'}  {row.detail}"
        for row in rows
    )


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
        version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Row("bubblewrap", False, f"{program} does not run: {error}; {BUBBLEWRAP_ADVICE}")
    return Row("bubblewrap", True, f"{version}, {program}")


def _user(options: PythonOptions) -> Row:
    """The user of the jail must own nothing: Landlock does not cover chmod, so it could change what it owns."""
    if os.geteuid() != 0:
        return Row("user", True, f"{os.geteuid()}, in a user namespace of its own")
    try:
        name = pwd.getpwuid(options.jail_uid).pw_name
        return Row(
            "user", False, f"{options.jail_uid} is {name}: set jail_uid to an id that nobody has"
        )
    except KeyError:
        pass
    owned = [path for path in DEVICES if os.stat(path).st_uid == options.jail_uid]
    if owned:
        return Row(
            "user",
            False,
            f"{options.jail_uid} owns {', '.join(owned)}: set jail_uid to an id that owns nothing",
        )
    return Row("user", True, f"{options.jail_uid}, owns nothing")


def _namespaces(options: PythonOptions) -> Row:
    arguments = command(options, Isolation(), Toolbox.find(options))
    arguments[-1] = "pass"  # in place of the zygote
    try:
        tried = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, cwd="/"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Row(Layer.NAMESPACES, False, f"{error}; {USERNS_ADVICE}")
    if tried.returncode != 0:
        return Row(
            Layer.NAMESPACES, False, f"{tried.stderr.strip() or tried.returncode}; {USERNS_ADVICE}"
        )
    return Row(Layer.NAMESPACES, True, "user, mount, pid, network, ipc, uts")


def _landlock() -> Row:
    abi = abi_version()
    return Row(Layer.LANDLOCK, abi > 0, f"version {abi}" if abi else LANDLOCK_ADVICE)


def _seccomp() -> Row:
    try:
        program = syscalls.program()
    except ToolUnavailable as error:
        return Row("seccomp", False, str(error))
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    if not actions.exists() or "kill_process" not in actions.read_text():
        return Row(
            "seccomp",
            False,
            f"{os.strerror(errno.ENOSYS)}: a kernel from 4.14 on with CONFIG_SECCOMP_FILTER",
        )
    return Row(
        "seccomp",
        True,
        f"{len(syscalls.ALLOWED.split())} system calls allowed, {len(program) // 8} instructions",
    )
