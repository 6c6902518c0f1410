"""The folder of a jail's calls on a machine without namespaces, where each has no tree of its own.

The folder is locked while its server lives, so what a killed server left is found, and removed by
the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "axpo-python-"


class WorkFolder:
    """A new folder for the working directories of calls."""

    def __init__(self) -> None:
        """Make the folder, after the removal of those that killed servers left."""
        parent = Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        self.path, self._lock = _locked_folder(parent)

    def share(self) -> None:
        """Let every user make a folder in it, and list or remove no other one's."""
        self.path.chmod(0o1733)

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it; return it with the descriptor that holds the lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Another server may find it without a lock, and remove it. Then there is another one.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user that nobody holds a lock of."""
    for folder in parent.glob(f"{PREFIX}*"):
        # It has just gone, is no folder, or is in use.
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)
