"""Take SIGTERM and Ctrl-C as a request to end after the step in progress."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SHOW_CURSOR = "\x1b[?25h"


class StopRequest:
    """Remember during a block whether this process was asked to end.

    SIGTERM comes from preemption, `kill`, or a job scheduler's time limit, SIGINT from Ctrl-C. A
    second one ends the process at once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """Listen in the block; `say` prints one line."""
        self.requested = False
        self._say = say
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Ray has set its own handler, which would end the run in the middle of a step.
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._request) for one in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            _end(number)
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        # A handler runs between two lines of the main thread, which may be printing right now.
        say = f"{name}: ending after this step, with a checkpoint. Once more: at once"
        threading.Thread(target=self._say, args=(say,), daemon=True).start()


def _end(number: int) -> None:
    """End the process at once. What Ray started for it ends with it."""
    if sys.stdout.isatty():
        # A live display hides it.
        os.write(sys.stdout.fileno(), _SHOW_CURSOR.encode() + b"\n")
    os._exit(128 + number)
