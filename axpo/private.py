"""Keep what Ray writes on this machine from its other users.

A local session writes a token that lets its reader run code as this user, and a folder of sockets
and logs. Ray leaves their permissions to the umask.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError

log = logging.getLogger(__name__)
ROOT = "/tmp"
UMASK = "AXPO_UMASK"
"""Environment variable of Ray's workers: the umask with which they shall write."""


@contextmanager
def files() -> Iterator[dict[str, Any]]:
    """Let this process and what it starts create files for this user only, during a block.

    What lies in the open from an earlier session is closed first, and said.

    Yields:
        What a Ray session needs in its `runtime_env`, so that actors write runs (and jails, whose
        users are others) with the umask of before.
    """
    before = os.umask(0o077)
    try:
        _close(Path.home() / ".ray", Path.home() / ".ray" / "auth_token")
        hook = f"{restore_umask.__module__}.{restore_umask.__name__}"
        yield {"env_vars": {UMASK: f"{before:o}"}, "worker_process_setup_hook": hook}
    finally:
        os.umask(before)


def restore_umask() -> None:
    """Give a worker of Ray the umask that its session was started with."""
    os.umask(int(os.environ[UMASK], 8))


def session_folder() -> str:
    """Return a folder for Ray's sessions that only this user can enter.

    It is inside RAY_TMPDIR if that is set, else inside /tmp/axpo-<user id>: the paths of sockets
    must be short. Ray opens its own folder to everybody, whatever the umask, so another one is
    around it.

    Raises:
        AxpoError: somebody else owns it.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen:
        return str(Path(chosen) / "ray")  # where Ray itself would put it
    around = Path(f"{ROOT}/axpo-{os.getuid()}")
    around.mkdir(mode=0o700, exist_ok=True)
    found = around.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise AxpoError(
            f"{around}: somebody else's; set RAY_TMPDIR to a folder that only you can enter"
        )
    _close(around)
    return str(around / "ray")


def _close(*paths: Path) -> None:
    """Take the rights of all others from files and folders."""
    for path in paths:
        if not path.exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            path.chmod(mode & 0o700)
            log.warning(
                "%s was open to other users of this machine (mode %o), and is closed now (%o)",
                path,
                mode,
                mode & 0o700,
            )
