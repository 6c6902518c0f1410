"""Keep the trackers of a run up to date, each from a thread of its own.

Training never waits for a tracker. What a tracker does not take is told once and left out; the run
directory still has it. Only a tracker that cannot even start ends a run, before anything else does.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axpo.errors import AxpoError
from axpo.texts import one_line
from axpo.trackers.tracker import Session, Sink, Table, Tracker, finite

Call = Callable[[Sink], None]

RAISED = (Exception, SystemExit)
"""Whatever a package raises. Some exit if they find no key, which would end a thread in silence."""
START_S = 180.0
"""Seconds until a tracker that does not open is given up."""
LONGEST_QUEUE = 10_000
"""Calls that wait for a tracker that answers slowly; the next ones are left out."""
CLOSE_S = 60.0
"""Seconds for a tracker to take what waits when the run ends."""


class Followers:
    """All trackers of one run, open for writing."""

    def __init__(
        self, trackers: Sequence[Tracker], session: Session, ids: Mapping[str, str]
    ) -> None:
        """Open the trackers.

        Args:
            trackers: of the recipe.
            session: what they are opened with, apart from the id.
            ids: of the sinks of an earlier process, by the tracker's name.

        Raises:
            AxpoError: a tracker did not start.
        """
        # All of them start side by side: some import for seconds.
        self._feeds = [
            _Feed(tracker, dataclasses.replace(session, id=ids.get(tracker.name)))
            for tracker in trackers
        ]
        failed = [feed for feed in self._feeds if not feed.started()]
        if failed:
            self.close(None)
            raise AxpoError(f"logging.trackers: {failed[0].take_faults()[0]}")

    def ids(self) -> dict[str, str]:
        """Return what finds the run again in each tracker, by the tracker's name."""
        return {feed.tracker.name: feed.sink.id for feed in self._feeds if feed.sink}

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send a step's numbers; those that are not finite are left out."""
        numbers = finite(values)
        for feed in self._feeds:
            feed.put(lambda sink: sink.log(step, numbers))

    def table(self, step: int, make: Callable[[], Table]) -> None:
        """Send a step's trajectories to the trackers that want them now.

        Args:
            step: the step, counted from 1.
            make: returns the trajectories; only called if a tracker wants them.
        """
        wanting = [feed for feed in self._feeds if feed.tracker.wants_table(step)]
        if not wanting:
            return
        table = make()
        for feed in wanting:
            feed.put(lambda sink: sink.table(step, table))

    def take_faults(self) -> list[str]:
        """Return what trackers did not take since the last call, each reason once in a run."""
        return [fault for feed in self._feeds for fault in feed.take_faults()]

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """End the run in every tracker.

        Args:
            summary: of a run that ended; None: it may go on later.
        """
        for feed in self._feeds:
            feed.end(summary)
        for feed in self._feeds:
            feed.join()


class _Feed:
    """The thread that opens, feeds and closes one tracker, and what waits for it.

    Some trackers catch Ctrl-C if they are opened in the main thread.
    """

    def __init__(self, tracker: Tracker, session: Session) -> None:
        self.tracker = tracker
        self.sink: Sink | None = None
        self._session = session
        self._opened = threading.Event()
        self._waiting: queue.Queue[Call | None] = queue.Queue(LONGEST_QUEUE)
        self._told: set[str] = set()
        self._faults: list[str] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._work, name=f"tracker-{tracker.name}", daemon=True
        )
        self._thread.start()

    def started(self) -> bool:
        """Wait until the tracker is open; return False, with a fault, if it does not open."""
        if not self._opened.wait(START_S):
            self._fault(f"did not start within {START_S:g} s")
        return self.sink is not None

    def put(self, call: Call) -> None:
        """Let the thread make a call, after those that wait."""
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self._fault(f"does not keep up: {LONGEST_QUEUE} calls wait, further ones are left out")

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Let the thread end, after all that waits."""
        try:
            self._waiting.put(lambda sink: sink.close(summary), timeout=CLOSE_S)
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            self._fault("is stuck, and was not closed")

    def join(self) -> None:
        """Wait until the tracker has taken everything, for CLOSE_S seconds at most."""
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._fault(f"was not done {CLOSE_S:g} s after the run ended")

    def take_faults(self) -> list[str]:
        """Return what went wrong since the last call, each reason once."""
        with self._lock:
            faults, self._faults = self._faults, []
        return faults

    def _work(self) -> None:
        try:
            sink = self.sink = self.tracker.open(self._session)
        except RAISED as error:
            self._fault(f"did not start: {type(error).__name__}: {error}")
            return
        finally:
            self._opened.set()
        while (call := self._waiting.get()) is not None:
            try:
                call(sink)
            except RAISED as error:
                self._fault(f"{type(error).__name__}: {error}")

    def _fault(self, reason: str) -> None:
        fault = f"{self.tracker.name} {one_line(reason)}"
        with self._lock:
            if fault not in self._told:
                self._told.add(fault)
                self._faults.append(fault)
