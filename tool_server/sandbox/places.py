"""What each running call has to itself: a number, and by it a control group and a user.

Counters of the kernel are per group or per user. No two calls that run at the same time share one
of these, so none can use up what another needs.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tool_server.sandbox.cgroup import Group, MemoryEvents
from tool_server.sandbox.cgroups import Groups, NoGroups
from tool_server.sandbox.options import MAX_THREADS, Isolation, PythonOptions

VMSTAT = Path("/proc/vmstat")


class OutOfMemory(StrEnum):
    """Whose memory the kernel ran out of when it killed a call; there is evidence."""

    CALL = "call"  # of the call's own control group
    MACHINE = "machine"  # of the machine, or of a group around the server's


@dataclass(frozen=True)
class Place:
    """What one call has to itself while it runs."""

    group: Group | None
    user: int  # user id; 0: its user namespace keeps it apart
    before: MemoryEvents

    def out_of_memory(self) -> OutOfMemory | None:
        """Return what the kernel's counters say of the call, which was killed; None: nothing."""
        now = _machines_events() if self.group is None else self.group.memory_events()
        if now.kills <= self.before.kills:
            return None
        return OutOfMemory.CALL if now.refusals > self.before.refusals else OutOfMemory.MACHINE


class Places:
    """The places of one pool. They are made when they are first needed, and used again."""

    def __init__(self, options: PythonOptions, isolation: Isolation) -> None:
        self._options, self._isolation = options, isolation
        self._taken: set[int] = set()
        self._groups: Groups | None = None
        if not isolation.bare:
            with contextlib.suppress(NoGroups):
                self._groups = Groups.open()

    @contextlib.contextmanager
    def take(self, given: int) -> Iterator[Place]:
        """Give a call a place for as long as it runs.

        Args:
            given: bytes of the images that the call is given, on top of its own memory.
        """
        number = next(number for number in itertools.count() if self._free(number))
        self._taken.add(number)
        try:
            group = self._group(number)
            if group is not None:
                group.limit(self._options.memory_bytes + given, MAX_THREADS)
            before = _machines_events() if group is None else group.begin()
            yield Place(group, self._user(number), before)
        finally:
            self._taken.discard(number)

    def close(self) -> None:
        """Remove the control groups."""
        if self._groups is not None:
            self._groups.close()

    def _free(self, number: int) -> bool:
        if number in self._taken:
            return False
        # Of a call whose jail did not answer, a process may still be there for a moment.
        group = self._group(number)
        return group is None or group.idle()

    def _group(self, number: int) -> Group | None:
        return None if self._groups is None else self._groups.group(number)

    def _user(self, number: int) -> int:
        if self._isolation.namespaces or self._isolation.bare:
            return 0
        return self._options.jail_uid + 1 + number


def _machines_events() -> MemoryEvents:
    """Return what the whole machine has counted: evidence if a call has no group of its own."""
    with contextlib.suppress(OSError):
        for line in VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return MemoryEvents(int(line.split()[1]), 0)
    return MemoryEvents(0, 0)
