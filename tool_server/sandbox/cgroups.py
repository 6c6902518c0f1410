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
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

PREFIX = "axpo-"
NEEDED = ("memory", "pids")
CONTROLLERS = (*NEEDED, "cpu")

PERIOD_US = 100_000
"""Of CPU time: a call gets as much in each period, which is one core."""

REMOVAL_S = 1.0
"""The kernel empties a group in its own time after its last process has ended."""

MOST_USED = ("memory.max_usage_in_bytes", "memory.memsw.max_usage_in_bytes")
"""Of version 1: what a group used at most, without swap and with it."""

NEAR_LIMIT = 1 << 20
"""The kernel takes memory in batches of pages per core."""

JOIN = 'for file; do echo 0 >"$file" || exit 1; done'
"""Shell: move this process into the groups whose files are given."""


class NoGroups(Exception):
    """No control group can be made here; the message says why."""


class MemoryEvents(NamedTuple):
    """What a group has counted since it was made."""

    kills: int  # processes that the kernel killed for want of memory, whoever wanted it
    refusals: int  # above what it was before: the group's own limit was in the way


class Group(ABC):
    """The control group of one call at a time."""

    JOIN_FILE: ClassVar[str]

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Make the group's folders: controller -> folder."""
        self._folders = dict(folders)
        self._memory = 0
        for folder in self._distinct():
            folder.mkdir(exist_ok=True)

    def joining(self) -> list[Path]:
        """Return the files to which a process writes "0" to join."""
        return [folder / self.JOIN_FILE for folder in self._distinct()]

    def idle(self) -> bool:
        """Return whether no process is in the group."""
        return not any((folder / "cgroup.procs").read_text() for folder in self._distinct())

    def limit(self, memory: int, pids: int) -> None:
        """Limit bytes of memory, number of threads and processes, and CPU time to one core."""
        if memory == self._memory:
            return
        if not self._memory:
            (self._folders["pids"] / "pids.max").write_text(str(pids))
            if "cpu" in self._folders:
                self._limit_cpu(self._folders["cpu"])
        self._limit_memory(self._folders["memory"], memory, self._memory)
        self._memory = memory

    def begin(self) -> MemoryEvents:
        """Return what was counted before the next call."""
        return self.memory_events()

    def memory_events(self) -> MemoryEvents:
        """Return what was counted so far."""
        return self._events(self._folders["memory"])

    def remove(self) -> None:
        """Remove the folders; what still has a process stays."""
        for folder in self._distinct():
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self._folders.values()))

    @abstractmethod
    def _limit_cpu(self, folder: Path) -> None: ...

    @abstractmethod
    def _limit_memory(self, folder: Path, memory: int, before: int) -> None: ...

    @abstractmethod
    def _events(self, folder: Path) -> MemoryEvents: ...


class GroupV1(Group):
    """A group of version 1."""

    # Through `tasks`, a process of one thread joins without the lock that `cgroup.procs` takes:
    # 0.1 ms for three controllers, not 7.
    JOIN_FILE = "tasks"

    def begin(self) -> MemoryEvents:
        """Return what was counted before the next call, and forget how much the last one used."""
        for most in _there(self._folders["memory"], MOST_USED):
            most.write_text("0")
        return self.memory_events()

    def _limit_cpu(self, folder: Path) -> None:
        (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(PERIOD_US))

    def _limit_memory(self, folder: Path, memory: int, before: int) -> None:
        # With swap must never be below without: the order depends on the direction.
        files = _there(folder, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"))
        if before and memory > before:
            files.reverse()
        for file in files:
            file.write_text(str(memory))

    def _events(self, folder: Path) -> MemoryEvents:
        kills = _table(folder / "memory.oom_control").get("oom_kill", 0)
        # Linux 6.18 does not count in memory.failcnt any more.
        used = max(int(most.read_text()) for most in _there(folder, MOST_USED))
        return MemoryEvents(kills, int(used + NEAR_LIMIT > self._memory))


class GroupV2(Group):
    """A group of version 2."""

    JOIN_FILE = "cgroup.procs"

    def _limit_cpu(self, folder: Path) -> None:
        (folder / "cpu.max").write_text(f"{PERIOD_US} {PERIOD_US}")

    def _limit_memory(self, folder: Path, memory: int, before: int) -> None:
        (folder / "memory.max").write_text(str(memory))
        swap = folder / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    def _events(self, folder: Path) -> MemoryEvents:
        counted = _table(folder / "memory.events")
        return MemoryEvents(counted.get("oom_kill", 0), counted.get("oom", 0))


class Groups:
    """The control groups of one server."""

    def __init__(self, kind: type[Group], bases: Mapping[str, Path]) -> None:
        """Make a folder for the groups in each base: controller -> folder of another group.

        Raises:
            OSError: this is not allowed.
        """
        self._kind = kind
        self._homes: dict[Path, _Home] = {}  # by base
        self._groups: dict[int, Group] = {}
        try:
            for base in bases.values():
                if base not in self._homes:
                    self._homes[base] = _Home.make(base)
            self._folders = {name: self._homes[base].folder for name, base in bases.items()}
            if kind is GroupV2:
                _enable(self._folders["memory"], list(bases))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls) -> Groups:
        """Return groups in which a process was seen to run.

        Raises:
            NoGroups: neither version lets this process make any.
        """
        reasons = []
        for kind, bases in _candidates(reasons):
            groups = None
            try:
                groups = cls(kind, bases)
                groups.try_out()
                return groups
            except (OSError, subprocess.SubprocessError) as error:
                reasons.append(str(error))
                if groups is not None:
                    groups.close()
        raise NoGroups("; ".join(dict.fromkeys(reasons)) or "no control groups are mounted")

    @property
    def detail(self) -> str:
        """Say what is counted."""
        version = 2 if self._kind is GroupV2 else 1
        return f"version {version}: {', '.join(self._folders)} of each call"

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
            joining = ["sh", "-c", JOIN, "sh", *group.joining()]
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


def _candidates(reasons: list[str]) -> Iterator[tuple[type[Group], dict[str, Path]]]:
    """Yield where groups may be made, best first; add to `reasons` why others will not do."""
    mounts = _mounts(Path("/proc/self/mountinfo").read_text())
    own = _own(Path("/proc/self/cgroup").read_text())
    for mount in mounts:
        if mount.controllers is None:
            yield from _candidates_v2(mount, own.get("", "/"), reasons)
    bases = {}
    for name in CONTROLLERS:
        for mount in mounts:
            if mount.controllers is not None and name in mount.controllers:
                bases[name] = mount.folder(own.get(name, "/"))
    if all(name in bases for name in NEEDED):
        yield GroupV1, bases


def _candidates_v2(
    mount: _Mount, own: str, reasons: list[str]
) -> Iterator[tuple[type[Group], dict[str, Path]]]:
    """Yield the server's own group, then the one above it.

    A group that has processes of its own, as the server's has, cannot have groups with limits
    below it, unless it is the root.
    """
    folder = mount.folder(own)
    for base in dict.fromkeys((folder, folder.parent)):
        if not base.is_relative_to(mount.point):
            continue
        there = (base / "cgroup.controllers").read_text().split()
        lacking = [name for name in NEEDED if name not in there]
        if lacking:
            reasons.append(f"{base} has no {', '.join(lacking)}")
            continue
        controllers = [name for name in CONTROLLERS if name in there]
        try:
            _enable(base, controllers)
        except OSError as error:
            reasons.append(str(error))
            continue
        yield GroupV2, dict.fromkeys(controllers, base)


def _enable(folder: Path, controllers: Sequence[str]) -> None:
    """Let the groups below have limits of these controllers (version 2)."""
    file = folder / "cgroup.subtree_control"
    missing = [f"+{name}" for name in controllers if name not in file.read_text().split()]
    if missing:
        file.write_text(" ".join(missing))


@dataclass(frozen=True)
class _Mount:
    """A mounted tree of control groups."""

    root: str  # the group that is seen at the mount point
    point: Path
    controllers: tuple[str, ...] | None  # None: version 2

    def folder(self, group: str) -> Path:
        """Return the folder of a group; in a container, groups outside of it are not seen."""
        inside = os.path.relpath(group, self.root)
        folder = self.point / inside
        return folder if not inside.startswith("..") and folder.is_dir() else self.point


def _mounts(mountinfo: str) -> list[_Mount]:
    """Read /proc/self/mountinfo: `ID PARENT DEVICE ROOT POINT ... - TYPE SOURCE OPTIONS`."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split()
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            found.append(_Mount(root, Path(point), None))
        elif kind == "cgroup":
            found.append(_Mount(root, Path(point), tuple(options.split(","))))
    return found


def _own(groups: str) -> dict[str, str]:
    """Read /proc/self/cgroup, `ID:CONTROLLERS:GROUP`: controller -> group; "" is version 2."""
    own = {}
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = group
    return own


def _there(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files that the kernel has: those with swap may be missing."""
    return [folder / name for name in names if (folder / name).exists()]


def _table(file: Path) -> dict[str, int]:
    """Read lines of `NAME NUMBER`."""
    table = {}
    for line in file.read_text().splitlines():
        name, number = line.split()
        table[name] = int(number)
    return table
