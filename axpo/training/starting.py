"""Say what the start of a run waits for, and on which node it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from axpo.placement import Plan
from axpo.placement.table import table

REMIND_S = 30.0
"""Seconds after which a start that still waits says so again."""


class Starting:
    """Know which actors of a run are not there yet."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start waiting; `say` prints one line."""
        self.nodes: dict[str, str] = {}
        """Where each actor stands, by its name: "engine 0"."""
        self.plan: Plan | None = None
        self._say = say
        self._waiting: list[str] = []
        self._lock = threading.Lock()
        self._since = time.monotonic()

    def placed(self, plan: Plan) -> None:
        """Say where the actors will stand; from now on they are waited for."""
        self.plan = plan
        self.nodes = {seat.name: plan.node(seat).name for seat in plan.seats}
        self._waiting = sorted(self.nodes)
        if len(plan.nodes) == 1:
            self._say(f"starting on {plan.nodes[0].name}: {', '.join(sorted(self.nodes))}")
            return
        self._say(f"starting on {len(plan.nodes)} nodes:")
        for line in table(plan):
            self._say(f"   {line}")

    def log(self, event: str, **fields: Any) -> None:
        """Take what happens to the workers: one that serves is no longer waited for."""
        if event == "worker serves":
            self.is_there(f"engine {fields['place']}")

    def is_there(self, what: str) -> None:
        """Stop waiting for an actor, or for all of a kind: "rank" or "tool server"."""
        # The pool's thread says so of an engine, and the main thread of all others.
        with self._lock:
            self._waiting = [
                name for name in self._waiting if name != what and not name.startswith(f"{what} ")
            ]

    def awaited(self) -> str:
        """Return what is waited for, with the nodes: "engine 1 on 10.0.0.2"."""
        if self.plan is None:
            return "the nodes"
        by_node: dict[str, list[str]] = {}
        for name in self._waiting:
            by_node.setdefault(self.nodes[name], []).append(name)
        parts = [f"{', '.join(names)} on {node}" for node, names in by_node.items()]
        return "; ".join(parts) or "the resampler"

    @contextmanager
    def reminding(self, seconds: float = REMIND_S) -> Iterator[None]:
        """Say every so many seconds during a block what is waited for."""
        ended = threading.Event()

        def remind() -> None:
            while not ended.wait(seconds):
                waited = time.monotonic() - self._since
                self._say(f"waiting for {self.awaited()} ({waited:.0f} s)")

        reminder = threading.Thread(target=remind, daemon=True, name="start-reminder")
        reminder.start()
        try:
            yield
        finally:
            ended.set()
            reminder.join()
