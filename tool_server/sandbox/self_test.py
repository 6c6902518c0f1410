"""The self-test of a jail: escapes that are tried for real, in a call, before it serves anybody.

The escapes are in `inside/escapes.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator

from tool_server.sandbox.channels import Work
from tool_server.sandbox.inside import escapes
from tool_server.sandbox.jail import ENVIRONMENT
from tool_server.sandbox.options import MAX_THREADS, MIB, Isolation, PythonOptions
from tool_server.sandbox.process import Finished, Jail
from tool_server.tool import ToolUnavailable

GIVEN_ENVIRONMENT = [*ENVIRONMENT, "LC_CTYPE", "PWD"]
"""Of the last two, Python's start with C.UTF-8 sets one, and bubblewrap's --chdir the other."""


async def self_test(jail: Jail, options: PythonOptions, isolation: Isolation) -> None:
    """Try every escape.

    Raises:
        ToolUnavailable: with every escape that got through, or because the report is not complete.
    """
    with _facts(options, isolation) as facts:
        code = f"from inside import escapes\nescapes.run({facts!r})"
        finished = await jail.call(Work([code], [], [0]))
    got_out = through(finished, escapes.names(facts))
    if got_out:
        raise ToolUnavailable("the sandbox does not hold: " + "; ".join(got_out))


@contextlib.contextmanager
def _facts(options: PythonOptions, isolation: Isolation) -> Iterator[escapes.Facts]:
    """Put out a file and a port of this server for the escapes to reach for."""
    with (
        tempfile.NamedTemporaryFile("w", prefix="axpo-canary-") as canary,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        canary.write("canary")
        canary.flush()
        # Everybody may read it, so only the sandbox keeps an escape from it.
        os.chmod(canary.name, 0o644)
        yield {
            "canary": canary.name,
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "environment": GIVEN_ENVIRONMENT,
            "disk": options.disk_mib * MIB,
            "memory": options.memory_bytes,
            "threads": MAX_THREADS,
            "namespaces": isolation.namespaces,
            "landlock": isolation.landlock,
        }


def through(finished: Finished, expected: list[str]) -> list[str]:
    """Return the escapes that got through. A report that lacks an attempt proves nothing."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
        tried = json.loads(finished.output.splitlines()[-1])["tried"]
        if finished.begun and finished.complete and list(tried) == expected:
            return [f"{name}: {got}" for name, got in tried.items() if got is not None]
    killed = finished.killed or "not killed"
    return [f"the self-test failed: {finished.output[-500:]!r}, status {finished.status}, {killed}"]
