"""SIGTERM as a request to end after the step in progress."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopRequest:
    """Whether this process was asked to end (SIGTERM: preemption, `kill`, a job scheduler's time limit). A second one ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        # Ray has set its own handler, which would end the run in the middle of a step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
