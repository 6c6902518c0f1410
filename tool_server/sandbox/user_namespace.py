"""Start a command as root of a user namespace that knows two users: root and that of the jail.

    python user_namespace.py USER COMMAND...

For root without CAP_SYS_ADMIN, which is root in a container: in a namespace of its own it has what
bubblewrap needs to lay out the tree, and the jail's user still owns nothing. This file is run by
its path, so it imports nothing of AXPO.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000


def main(user: str, *command: str) -> None:
    """Replace this process by the command, in the namespace."""
    unshared, tell = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        _map(unshared, os.getppid(), f"0 0 1\n{user} {user} 1\n")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
    os.write(tell, b"x")
    _, status = os.waitpid(mapper, 0)
    if status:
        sys.exit("the users of the namespace cannot be set")
    os.execv(command[0], command)


def _map(unshared: int, pid: int, users: str) -> None:
    """Give the namespace its users: from outside, where this process may say who is who."""
    code = 1
    try:
        os.read(unshared, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(users)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
