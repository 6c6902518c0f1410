"""What a run could not ask, and why: read back from the logs of its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from axpo.record.files import read_rows

HELD_OUT = "held-out question set aside"
"""The event in events.jsonl; that of training questions is `unusable` in rollouts.jsonl."""


@dataclass(frozen=True)
class SetAside:
    """Why questions could not be asked, each reason once."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def count(self) -> int:
        """Return how many questions that are."""
        return len(self.training) + len(self.held_out)


def read_set_aside(run: Path) -> SetAside:
    """Return what a run directory says was set aside, by all processes of the run."""
    # Dictionaries keep the order. A reason names its row, so one that comes again is the same row.
    training = {
        str(row.get("reason")): None
        for row in read_rows(run / "rollouts.jsonl")
        if row.get("event") == "unusable"
    }
    held_out = {
        str(row.get("reason")): None
        for row in read_rows(run / "events.jsonl")
        if row.get("event") == HELD_OUT
    }
    return SetAside(tuple(training), tuple(held_out))
