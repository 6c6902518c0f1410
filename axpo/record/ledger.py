"""The log of a run's questions, and the rules that it must satisfy.

The rules say that no question is lost and that none is trained on twice.

The log is `rollouts.jsonl`, one JSON object a line: `t` (seconds since the epoch), `event`, and the
event's fields. A question is `dispatched`, and then exactly one of `trained` and `dropped` (with a
reason). Between them it may be `finished`, `requeued` (its worker was lost), `forked` and
`unusable` (its data is at fault). One that is trained may be `carried` later, once: its carried
forks were trained with another batch (`resampler.schedule: carry`). One whose fault is known
before is `unusable` alone: it was passed over, and the next one was asked.

`started` opens a process of the run. What the process before it had in flight is dispatched again,
with `restored` if the checkpoint kept its group.

`step` is the training step, counted from 0, of `started`, `trained`, `carried` and `dropped`.
`batch` is the number of the batch that a question was asked in, of all other events. Logs of older
runs call that number `step`, too.
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

from axpo.record.files import appending, parse_rows

IN_FLIGHT, UNKNOWN = "in flight", "unknown"


class Ledger:
    """Append events to the log, from any thread."""

    def __init__(self, file: Path) -> None:
        # Buffered by line: a kill loses no event that was logged.
        self._lines = appending(file)
        self._lock = threading.Lock()

    def log(self, event: str, **fields: Any) -> None:
        """Append one event as one complete line, with the time."""
        line = json.dumps({"t": round(time.time(), 3), "event": event} | fields)
        with self._lock:
            self._lines.write(line + "\n")


@dataclass(frozen=True)
class Balance:
    """The questions of one process of a run: dispatched = trained + dropped + in_flight."""

    dispatched: int
    trained: int
    dropped: int
    in_flight: int


def balance(events: Iterable[Mapping[str, Any]]) -> Balance:
    """Return the balance of the last process in a log.

    Raises:
        ValueError: a question was dispatched twice, or trained on or dropped twice, or either of
            them without being dispatched; or its carried forks were trained twice or before it.
    """
    states: dict[str, str] = {}
    carried: set[str] = set()
    for row in events:
        event, question = row["event"], str(row.get("question"))
        if event == "started":
            # This process dispatches again what the one before had in flight.
            states, carried = {}, set()
        elif event == "dispatched":
            if question in states:
                raise ValueError(f"question {question} was dispatched twice")
            states[question] = IN_FLIGHT
        elif event in ("trained", "dropped"):
            state = states.get(question, UNKNOWN)
            if state != IN_FLIGHT:
                raise ValueError(f"question {question} was {event}, but it is {state}")
            states[question] = event
        elif event == "carried":
            # A process before this one may have trained it.
            if question in carried or states.get(question, "trained") != "trained":
                raise ValueError(f"question {question}: its forks were trained twice or too early")
            carried.add(question)
    counts = Counter(states.values())
    return Balance(len(states), counts["trained"], counts["dropped"], counts[IN_FLIGHT])


def read(file: Path) -> list[dict[str, Any]]:
    """Return the events of a log, without a line that a kill cut off."""
    return list(parse_rows(file.read_text(encoding="utf-8").splitlines()))
