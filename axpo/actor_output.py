"""Bring what all actors print, on every node, to this process.

Each node's log monitor reads the output of its workers and publishes it in the cluster, whether or
not anybody listens. Ray's own listener prints everything on the driver's console; this one writes
it into the run directory. So it needs no file system that the nodes share, and what a process
printed before it died is there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from axpo.record.actor_logs import ActorLogs

log = logging.getLogger(__name__)
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
    try:
        yield
    finally:
        time.sleep(LAST_S)
        dispatcher.remove_handler(_NAME)
        logs.close()


def _listen() -> None:
    """Start Ray's thread that hands out published lines, if it does not run already."""
    worker = ray._private.worker.global_worker
    running = getattr(worker, "logger_thread", None)
    if running is not None and running.is_alive():
        return
    # What `ray.init(log_to_driver=True)` does, without the handler that prints. `ray.shutdown`
    # ends the thread.
    worker.logger_thread = threading.Thread(target=worker.print_logs, daemon=True, name=_NAME)
    worker.logger_thread.start()
