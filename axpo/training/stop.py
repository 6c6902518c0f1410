"""Take SIGTERM as a request to end after the step in progress."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Remember whether this process was asked to end.

    SIGTERM comes from preemption, `kill`, or a job scheduler's time limit. A second one ends the
    process at once.
    """

    def __init__(self) -> None:
        self.requested = False
        # Ray has set its own handler, which would end the run in the middle of a step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
