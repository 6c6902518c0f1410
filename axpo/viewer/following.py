"""The process that brings the catalogs up to date while the server answers.

It is a process and not a thread: reading a long run for the first time keeps a core busy for a
minute, and pages would wait for it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from axpo.catalog.fill import fill
from axpo.catalog.schema import open_for_writing
from axpo.catalog.search import Catalog
from axpo.errors import AxpoError

log = logging.getLogger(__name__)
PAUSE_S = 1.0
"""Runs are looked at no more often than this."""


class Follower:
    """Brings catalogs up to date whenever it is asked to, until it is closed."""

    def __init__(self, catalogs: Sequence[Catalog]) -> None:
        # A page may ask a catalog before the process has begun.
        for catalog in catalogs:
            open_for_writing(catalog.file).close()
        context = multiprocessing.get_context("spawn")
        theirs, self._ours = context.Pipe(duplex=False)
        places = [(catalog.run, catalog.file) for catalog in catalogs]
        # A daemon ends with us. If we are killed, its end of the pipe says so.
        self._process = context.Process(target=_follow, args=(places, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._asked = 0.0
        self.ask()

    def ask(self) -> None:
        """Ask for new files to be read; return at once."""
        now = time.monotonic()
        if now - self._asked < PAUSE_S:
            return
        self._asked = now
        try:
            self._ours.send_bytes(b"look")
        except OSError:
            log.warning("the process that reads the runs has ended: the pages show what it read")

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join(timeout=2)
        self._process.kill()
        self._process.join(timeout=2)


def _follow(places: Sequence[tuple[Path, Path]], asked: Connection) -> None:
    """Read new files each time somebody asks."""
    os.nice(5)  # training comes first
    # Ctrl-C reaches us, too. The server ends us when it has answered.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            asked.recv_bytes()
            # Several questions at once have one answer.
            while asked.poll():
                asked.recv_bytes()
        except EOFError:
            return
        for run, file in places:
            try:
                fill(file, run)
            except (AxpoError, OSError) as error:
                log.warning("%s: %s", run, error)
