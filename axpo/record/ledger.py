"""The event log of a run's rollouts, and the invariants it must satisfy: nothing is lost, nothing is trained on twice.

One JSON object a line in `rollouts.jsonl`: `t` (seconds since the epoch), `event`, and its fields. A question's life is
`dispatched`, then exactly one of `trained` and `dropped` (with a reason); between them it may be `finished`, `requeued` (its
worker was lost) and `forked`. `started` opens a process of the run: what the one before had in flight is dispatched again, with
`restored` where the checkpoint kept its group.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Ledger:
    """Appends whole lines, from any thread."""

    def __init__(self, file: Path) -> None:
        self._lines = file.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def log(self, event: str, **fields: Any) -> None:
        line = json.dumps({"t": round(time.time(), 3), "event": event} | fields)
        with self._lock:
            self._lines.write(line + "\n")


@dataclass(frozen=True)
class Balance:
    """Questions of one process of a run; dispatched = trained + dropped + in_flight."""

    dispatched: int
    trained: int
    dropped: int
    in_flight: int


def balance(events: Iterable[Mapping[str, Any]]) -> Balance:
    """The balance of the last process in an event log.

    Raises ValueError where a question was dispatched twice, or trained on or dropped twice, or without being dispatched.
    """
    states: dict[str, str] = {}
    for row in events:
        event, question = row["event"], str(row.get("question"))
        if event == "started":
            states = {}
        elif event == "dispatched":
            if question in states:
                raise ValueError(f"question {question} was dispatched twice")
            states[question] = "in flight"
        elif event in ("trained", "dropped"):
            if states.get(question) != "in flight":
                raise ValueError(
                    f"question {question} was {event}, but it is {states.get(question, 'unknown')}"
                )
            states[question] = event
    counts = Counter(states.values())
    return Balance(len(states), counts["trained"], counts["dropped"], counts["in flight"])


def read(file: Path) -> list[dict[str, Any]]:
    """The events of a log; a line cut off by a kill is left out."""
    events = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
