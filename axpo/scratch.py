"""Folders of one process, which the next one on the machine removes if it was killed.

A process holds a lock on its folder, and the kernel gives it back when the process ends. So whoever
gets the lock of a folder may remove it. Process ids would not tell: containers that share /dev/shm
do not share them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "axpo-scratch-"


class Scratch:
    """A new folder that only this user can read, until it is closed or the process ends."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make the folder in `parent`; None: where temporary files are."""
        self.path, lock = _locked_folder(parent or _temporary())
        # Also when nobody holds this object any more, and when the interpreter ends.
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def share(self) -> None:
        """Let every user make a folder in it, and list or remove no other one's."""
        self.path.chmod(0o1733)

    def close(self) -> None:
        """Remove the folder with what it holds; nothing happens if it is closed."""
        self._remove()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def remove_left(parents: tuple[Path, ...] | None = None) -> list[Path]:
    """Remove the folders of processes that have ended, and return them.

    Args:
        parents: where to look; None: in shared memory, and where temporary files are.
    """
    removed = []
    for parent in parents or (SHARED_MEMORY, _temporary()):
        for folder in parent.glob(f"{PREFIX}*"):
            # It has just gone, is another user's, or is in use.
            with suppress(OSError):
                _remove_if_left(folder)
                removed.append(folder)
    return removed


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # The lock goes last: nobody else removes what this process is removing.
    os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder; raise OSError if its process lives."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{folder} is another user's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it; return it with the descriptor that holds the lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Whoever removes what is left may come between making and locking. Then there is another.
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
