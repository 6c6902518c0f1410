"""Bring what all actors print, on every node, to this process.

Each node's log monitor reads the output of its workers and publishes it in the cluster, whether or
not anybody listens. Ray's own listener prints everything on the driver's console; this one writes
it into the run directory. So it needs no file system that the nodes share, and what a process
printed before it died is there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._private import worker
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from axpo.record.actor_logs import ActorLogs

_NAME = "axpo"
LAST_S = 0.5
"""Seconds for the last lines to arrive: a monitor looks ten times a second."""


@contextmanager
def collected(folder: Path | None) -> Iterator[None]:
    """Write what actors print during a block into a folder, a file for each process.

    Args:
        folder: where to; None: nothing is written.
    """
    if folder is None:
        yield
        return
    logs = ActorLogs(folder)
    dispatcher.add_handler(_NAME, logs.write)
    _listen()
    # What a raylet says of a worker that died: on the console the run says it, with the cause.
    prints = worker.print_to_stdstream
    worker.print_to_stdstream = lambda batch, ignore_prefix: logs.write(batch)
    try:
        yield
    finally:
        time.sleep(LAST_S)
        worker.print_to_stdstream = prints
        dispatcher.remove_handler(_NAME)
        logs.close()


def _listen() -> None:
    """Start Ray's thread that hands out published lines, if it does not run already."""
    session = worker.global_worker
    running = getattr(session, "logger_thread", None)
    if running is not None and running.is_alive():
        return
    # What `ray.init(log_to_driver=True)` does, without the handler that prints. `ray.shutdown`
    # ends the thread.
    session.logger_thread = threading.Thread(target=session.print_logs, daemon=True, name=_NAME)
    session.logger_thread.start()
