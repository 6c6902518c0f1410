"""The control group of one call: its files in the kernel's two versions of the interface."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

PERIOD_US = 100_000
"""Of CPU time: a call gets as much in each period, which is one core."""

MOST_USED = ("memory.max_usage_in_bytes", "memory.memsw.max_usage_in_bytes")
"""Of version 1: what a group used at most, without swap and with it."""

NEAR_LIMIT = 1 << 20
"""The kernel takes memory in batches of pages per core."""


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
