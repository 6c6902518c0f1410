"""The self-test of a jail: escapes that are tried for real, inside a call, before the jail serves anybody."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile

from tool_server.sandbox.jail import ENVIRONMENT
from tool_server.sandbox.options import MIB, Isolation, PythonOptions
from tool_server.sandbox.process import Jail
from tool_server.tool import ToolUnavailable

ATTEMPTS = 20
"""At least so many must have been made: a report that lacks them proves nothing."""


async def probe(jail: Jail, options: PythonOptions, isolation: Isolation) -> None:
    """Raises ToolUnavailable with every escape that got through."""
    with (
        tempfile.NamedTemporaryFile("w", prefix="axpo-canary-") as canary,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        canary.write("canary")
        canary.flush()
        os.chmod(canary.name, 0o644)
        facts = {
            "canary": canary.name,
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            # Python's own C.UTF-8 start, and bubblewrap's --chdir.
            "environment": [*ENVIRONMENT, "LC_CTYPE", "PWD"],
            "disk": options.disk_mib * MIB,
            "memory": options.memory_mib * MIB,
            "namespaces": isolation.namespaces,
            "landlock": isolation.landlock,
        }
        finished = await jail.call([f"from inside import probe\nprobe.run({facts!r})"], [], [0])
    through = [
        f"the self-test failed: {finished.output[-500:]!r}, status {finished.status}, {finished.killed or 'not killed'}"
    ]
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
        tried = json.loads(finished.output.splitlines()[-1])["tried"]
        if finished.begun and finished.complete and len(tried) >= ATTEMPTS:
            through = [f"{name}: {got}" for name, got in tried.items() if got is not None]
    if through:
        raise ToolUnavailable("the sandbox does not hold: " + "; ".join(through))
