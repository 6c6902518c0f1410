"""Control groups: the kernel counts the memory, the processes and the CPU time of each call.

RLIMITs count per process and per user. A control group counts everything that a call makes, what
the kernel keeps for it included (sockets, pipes, timers, page tables). Where the server may make
groups, each running call has one of its own. Both versions of the kernel's interface are used:

    version 2   one tree; the groups are made below the server's own group, or beside it
    version 1   one tree per controller; the groups are made below the server's own in each

A group is made once and used by one call after another. Its folder is locked while its server
lives, so the folders that a killed server left are found, and removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tool_server.sandbox.cgroup import Group, GroupV1, GroupV2
from tool_server.sandbox.cgroup_trees import candidates, enable

PREFIX = "axpo-"
KINDS: dict[int, type[Group]] = {1: GroupV1, 2: GroupV2}

REMOVAL_S = 1.0
"""The kernel empties a group in its own time after its last process has ended."""

JOIN = 'for file; do echo 0 >"$file" || exit 1; done'
"""Shell: move this process into the groups whose files are given."""


class NoGroups(Exception):
    """No control group can be made here; the message says why."""


class Groups:
    """The control groups of one server."""

    def __init__(self, version: int, bases: Mapping[str, Path]) -> None:
        """Make a folder for the groups in each base: controller -> folder of another group.

        Raises:
            OSError: this is not allowed.
        """
        self._version = version
        self._kind = KINDS[version]
        self._homes: dict[Path, _Home] = {}  # by base
        self._groups: dict[int, Group] = {}
        try:
            for base in bases.values():
                if base not in self._homes:
                    self._homes[base] = _Home.make(base)
            self._folders = {name: self._homes[base].folder for name, base in bases.items()}
            if version == 2:
                enable(self._folders["memory"], list(bases))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls) -> Groups:
        """Return groups in which a process was seen to run.

        Raises:
            NoGroups: neither version lets this process make any.
        """
        reasons: list[str] = []
        try:
            for version, bases in candidates(reasons):
                groups = cls._tried(version, bases, reasons)
                if groups is not None:
                    return groups
        except OSError as error:  # what is mounted cannot be read
            reasons.append(str(error))
        raise NoGroups("; ".join(dict.fromkeys(reasons)) or "no control groups are mounted")

    @classmethod
    def _tried(cls, version: int, bases: Mapping[str, Path], reasons: list[str]) -> Groups | None:
        """Return groups that work; None, and a reason more, if they do not."""
        groups = None
        try:
            groups = cls(version, bases)
            groups.try_out()
            return groups
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(str(error))
            if groups is not None:
                groups.close()
            return None

    @property
    def detail(self) -> str:
        """Say what is counted."""
        return f"version {self._version}: {', '.join(self._folders)} of each call"

    def group(self, number: int) -> Group:
        """Return the group of this number."""
        if number not in self._groups:
            self._groups[number] = self._kind(self._named(f"call-{number}"))
        return self._groups[number]

    def _named(self, name: str) -> dict[str, Path]:
        return {controller: home / name for controller, home in self._folders.items()}

    def try_out(self) -> None:
        """Limit a group and let a process join it.

        Raises:
            OSError: a limit cannot be set.
            subprocess.SubprocessError: the process could not join.
        """
        group = self._kind(self._named("call-trial"))
        try:
            group.limit(memory=64 << 20, pids=16)
            group.memory_events()
            joining = ["sh", "-c", JOIN, "sh", *map(str, group.joining())]
            subprocess.run(joining, check=True, capture_output=True, timeout=10)
        finally:
            group.remove()

    def close(self) -> None:
        """Remove every group; wait a moment for processes that are just ending."""
        deadline = time.monotonic() + REMOVAL_S
        homes = list(self._homes.values())
        while homes:
            for group in self._groups.values():
                group.remove()
            homes = [home for home in homes if not home.removed()]
            if not homes or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        for home in homes:
            os.close(home.lock)  # the next server removes what is left
        self._groups, self._homes = {}, {}


@dataclass(frozen=True)
class _Home:
    """The folder of one server's groups in one tree, locked while the server lives."""

    folder: Path
    lock: int

    @classmethod
    def make(cls, base: Path) -> _Home:
        _remove_abandoned(base)
        while True:
            folder = base / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir()
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Another server may have found it without a lock, and removed it.
            if folder.exists():
                return cls(folder, lock)
            os.close(lock)

    def removed(self) -> bool:
        """Remove the folder and return whether it is gone."""
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return False
        os.close(self.lock)
        return True


def _remove_abandoned(base: Path) -> None:
    """Remove the groups of servers that were killed: nobody holds their lock."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for group in folder.glob("call-*"):
                    group.rmdir()
                folder.rmdir()
            finally:
                os.close(lock)
