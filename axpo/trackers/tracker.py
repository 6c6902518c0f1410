"""What a tracker is: settings in the recipe that open a sink, and the sink that a run writes to.

logging:
  trackers:
    - tensorboard
    - {name: wandb, project: axpo, mode: offline}
    - my_package.tracking:Mine            # a class of your own, or a function that opens a sink
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import Field

from axpo.errors import AxpoError
from axpo.registry import Registry, Variant

Numbers = Mapping[str, float]
"""Of a step, by name. All are finite."""


@dataclass(frozen=True)
class Table:
    """Trajectories that people read, a row each."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Sink(Protocol):
    """One run in one tracker, open for writing. It is used by one thread at a time."""

    id: str
    """Finds the run again: the session of a resume has it."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Take numbers of a step. A step has several calls; steps never go back."""

    def table(self, step: int, table: Table) -> None:
        """Take trajectories of a step; do nothing if the tracker has no tables."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """End the run, or pause it if there is no summary, and return when all is written."""


class History(Protocol):
    """What the run directory holds of the steps that count."""

    def numbers(self) -> Iterator[tuple[int, Numbers]]:
        """Yield the numbers of each step, in order."""

    def tables(self) -> Iterator[tuple[int, Table]]:
        """Yield the trajectories that were kept, in order of steps."""


@dataclass(frozen=True)
class Session:
    """What a sink is opened with."""

    run: Path
    """The run directory. Its folder `<tracker>` is the tracker's."""
    name: str
    recipe: Mapping[str, Any]
    history: History
    step: int = 0
    """The last step that counts. Later ones that the tracker may have will run again."""
    id: str | None = None
    """Of the sink of an earlier process of this run; None: there was none."""


class Tracker(Variant):
    """Where numbers go beside `metrics.jsonl`. Fields are its settings."""

    package: ClassVar[str] = ""
    """What it imports; "": nothing that could be missing."""

    tables_every: int = Field(1, ge=0, description="steps between two tables; 0: no tables")

    @abstractmethod
    def open(self, session: Session) -> Sink:
        """Begin the run in the tracker, or go on with it after `session.step`."""

    def check(self) -> None:
        """Raise AxpoError if the tracker cannot be used here. Nothing is imported."""
        if not self.package:
            return
        spec = find_spec(self.package)
        # Trackers leave folders of their own names behind, which Python takes for packages.
        if spec is None or spec.origin is None:
            # A tracker of the user's own is named by its import path, and no extra is.
            needed = self.package if ":" in self.name else f"'axpo[{self.name}]'"
            raise AxpoError(
                f"logging.trackers: {self.name}: {self.package} is not installed: "
                f"pip install {needed}, or leave the tracker out of the recipe"
            )

    def wants_table(self, step: int) -> bool:
        """Return whether the trajectories of a step are sent."""
        return self.tables_every > 0 and step % self.tables_every == 0

    def refill(self, sink: Sink, history: History) -> None:
        """Write the whole history into an empty sink."""
        tables = history.tables()
        waiting = next(tables, None)
        for step, numbers in history.numbers():
            sink.log(step, numbers)
            while waiting is not None and waiting[0] <= step:
                if waiting[0] == step and self.wants_table(step):
                    sink.table(*waiting)
                waiting = next(tables, None)


def check_all(trackers: Sequence[Tracker]) -> None:
    """Raise AxpoError if one of the trackers cannot be used here."""
    for tracker in trackers:
        tracker.check()


trackers = Registry("trackers", Tracker, core="open")


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries that are finite numbers: trackers draw no others."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings as one level, with names like `learner.lr`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def folder(session: Session, name: str) -> Path:
    """Return the folder of a tracker in the run directory; make it if it is not there."""
    path = session.run.resolve() / name
    path.mkdir(exist_ok=True)
    return path


def set_aside(files: Sequence[Path]) -> None:
    """Rename what an earlier process wrote: the history is written again, whole."""
    for file in files:
        file.rename(file.with_name(f"replaced-{file.name}"))
