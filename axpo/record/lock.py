"""The lock of a run directory: one run, one process."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from axpo.errors import AxpoError


class RunLock:
    """Hold a run directory for this process until `release`.

    The kernel drops the lock when the process ends, however it ends: a killed run can be resumed at
    once.

    Raises:
        AxpoError: another process holds the run.
    """

    def __init__(self, run: Path) -> None:
        # Without O_TRUNC: the file still says who holds the run.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(run / "lock", flags, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link, to a file that is not the run's
                raise AxpoError(f"{run / 'lock'}: is no regular file") from None
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 100).decode(errors="replace").strip()
            os.close(file)
            raise AxpoError(
                f"{run} is in use by process {holder or 'unknown'}: "
                "wait for it or choose another run name"
            ) from None
        # The next process that is refused reads here who holds the run.
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        self._file = file

    def release(self) -> None:
        """Let another process have the run."""
        os.close(self._file)


def is_held(run: Path) -> bool:
    """Return whether a process of this machine holds a run.

    The kernel is asked, not the lock: to try it would be in the way of a run that just starts.
    """
    try:
        inode = os.stat(run / "lock").st_ino
        held = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    # A line is, for example, "1: FLOCK  ADVISORY  WRITE 2107 00:1c:93045 0 EOF". Its device is not
    # always the one that `stat` names (on Btrfs, for example), so the inode alone is compared.
    fields = [line.split() for line in held.splitlines()]
    places = [field[5] for field in fields if "FLOCK" in field and len(field) > 5]
    return any(place.rpartition(":")[2] == str(inode) for place in places)
