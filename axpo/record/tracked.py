"""What trackers get of a run: the numbers of each step, and tables of its kept trajectories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from axpo.errors import AxpoError
from axpo.record.files import read_text, replace_file
from axpo.texts import clean
from axpo.trackers import Followers, Session, Table, Tracker
from axpo.trackers.tracker import Numbers, finite

IDS = "trackers.json"
"""In the run directory: what finds the run again in each tracker."""
LONGEST_TEXT = 8_000
"""Characters of a trajectory in a table; the run directory has all of it."""
COLUMNS = (
    *("step", "question", "expected", "rollout", "fork", "reward", "end", "answer"),
    *("tool_calls", "advantage", "text"),
)


class Recorded(Protocol):
    """What a run directory gives back."""

    @property
    def path(self) -> Path:
        """Its folder."""

    def recipe(self) -> dict[str, Any]:
        """Return the recipe as it was written."""

    def log_event(self, event: str, **fields: Any) -> None:
        """Write down what happened."""

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row a step."""

    def group_steps(self) -> list[int]:
        """Return the steps with kept groups."""

    def groups(self, step: int) -> list[dict[str, Any]]:
        """Return the kept groups of a step as records."""


class Tracking:
    """The trackers of a run directory. Without any, every method does nothing."""

    def __init__(self, run: Recorded) -> None:
        self._run = run
        self._trackers: Sequence[Tracker] = ()
        self._followers: Followers | None = None
        self._summary: Mapping[str, Any] | None = None
        self._not_reopened: list[str] = []

    def start(self, trackers: Sequence[Tracker], step: int = 0) -> None:
        """Open the trackers, for a run that goes on after `step`.

        Raises:
            AxpoError: a tracker did not start.
        """
        self._trackers = trackers
        if trackers:
            run = self._run
            name = run.path.resolve().name
            session = Session(run.path, name, run.recipe(), RunHistory(run), step)
            ids = _read_ids(run.path / IDS)
            self._followers = Followers(trackers, session, ids)
            replace_file(run.path / IDS, json.dumps(ids | self._followers.ids()) + "\n")

    def wind_back(self, step: int) -> None:
        """Let trackers that are open forget what came after `step`.

        If one of them does not start again, the run goes on without any: it is in the middle of its
        work, and the run directory has everything.
        """
        if self._followers is not None:
            self.stop()
            try:
                self.start(self._trackers, step)
            except AxpoError as error:
                self._not_reopened = [f"{error}; the run goes on without trackers"]

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Send a step's numbers."""
        if self._followers is not None:
            self._followers.log(step, values)

    def table(self, step: int, groups: Sequence[Mapping[str, Any]]) -> None:
        """Send a step's kept groups, which are records."""
        if self._followers is not None:
            self._followers.table(step, lambda: trajectory_table(groups))

    def take_faults(self) -> list[str]:
        """Return what trackers did not take since the last call, a line each."""
        faults, self._not_reopened = self._not_reopened, []
        if self._followers is not None:
            faults += self._followers.take_faults()
        return faults

    def end(self, summary: Mapping[str, Any]) -> None:
        """Say that the run has ended; the trackers get its summary when they stop."""
        self._summary = summary

    def stop(self) -> None:
        """Let the trackers write what they have, and end them."""
        if self._followers is not None:
            self._followers.close(self._summary)
        for fault in self.take_faults():
            self._run.log_event("tracker fault", reason=fault)
        self._followers = None


def _read_ids(file: Path) -> dict[str, str]:
    """Return the ids that an earlier process wrote; none if the file is missing or damaged."""
    try:
        ids = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in ids.items()} if isinstance(ids, dict) else {}


class RunHistory:
    """The steps of a run directory, for a tracker that begins with them."""

    def __init__(self, run: Recorded) -> None:
        self._run = run

    def numbers(self) -> Iterator[tuple[int, Numbers]]:
        """Yield the numbers of each step, in order."""
        for row in self._run.metrics():
            yield row["step"], finite({name: row[name] for name in row if name != "step"})

    def tables(self) -> Iterator[tuple[int, Table]]:
        """Yield the trajectories that were kept, in order of steps."""
        for step in self._run.group_steps():
            yield step, trajectory_table(self._run.groups(step))


def trajectory_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rollouts and continuations of kept groups, a row each.

    Args:
        groups: records (`axpo.record.records.group_to_json`).
    """
    rows = []
    for group in groups:
        for trajectory in group["rollouts"]:
            rows.append(_row(group, trajectory))
        for resample in group["resamples"]:
            rows += [_row(group, trajectory) for trajectory in resample["continuations"]]
    return Table(COLUMNS, tuple(rows))


def _row(group: Mapping[str, Any], trajectory: Mapping[str, Any]) -> tuple[Any, ...]:
    text = "".join(segment["text"] for segment in trajectory["segments"])[:LONGEST_TEXT]
    fork, credit = trajectory["fork"], trajectory.get("credit")
    return (
        group["step"],
        clean(group["question"]["id"]),
        clean(str(group["question"]["answer"])),
        trajectory["rollout"],
        fork["index"] if fork else None,
        trajectory["reward"],
        trajectory["end"],
        clean(trajectory["answer"] or ""),
        trajectory["stats"].get("tool_calls"),
        credit["advantage"] if credit else None,
        clean(text),
    )
