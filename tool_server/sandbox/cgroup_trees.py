"""Where control groups may be made on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

NEEDED = ("memory", "pids")
CONTROLLERS = (*NEEDED, "cpu")

Candidate: TypeAlias = tuple[int, dict[str, Path]]
"""Version of the interface, and for each controller the group below which groups may be made."""


def candidates(reasons: list[str]) -> Iterator[Candidate]:
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
        yield 1, bases


def _candidates_v2(mount: Mount, own: str, reasons: list[str]) -> Iterator[Candidate]:
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
        try:
            enable(base, NEEDED)
        except OSError as error:
            reasons.append(str(error))
            continue
        controllers = list(NEEDED)
        if "cpu" in there:
            with contextlib.suppress(OSError):
                enable(base, ["cpu"])
                controllers.append("cpu")
        yield 2, dict.fromkeys(controllers, base)


def enable(folder: Path, controllers: Sequence[str]) -> None:
    """Let the groups below have limits of these controllers (version 2)."""
    file = folder / "cgroup.subtree_control"
    missing = [f"+{name}" for name in controllers if name not in file.read_text().split()]
    if missing:
        file.write_text(" ".join(missing))


@dataclass(frozen=True)
class Mount:
    """A mounted tree of control groups."""

    root: str  # the group that is seen at the mount point
    point: Path
    controllers: tuple[str, ...] | None  # None: version 2

    def folder(self, group: str) -> Path:
        """Return the folder of a group; in a container, groups outside of it are not seen."""
        inside = os.path.relpath(group, self.root)
        folder = self.point / inside
        return folder if not inside.startswith("..") and folder.is_dir() else self.point


def _mounts(mountinfo: str) -> list[Mount]:
    """Read /proc/self/mountinfo: `ID PARENT DEVICE ROOT POINT ... - TYPE SOURCE OPTIONS`."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split()
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            found.append(Mount(root, Path(point), None))
        elif kind == "cgroup":
            found.append(Mount(root, Path(point), tuple(options.split(","))))
    return found


def _own(groups: str) -> dict[str, str]:
    """Read /proc/self/cgroup, `ID:CONTROLLERS:GROUP`: controller -> group; "" is version 2."""
    own = {}
    for line in groups.splitlines():
        _, controllers, group = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = group
    return own
