"""The run directory: all that a run writes, and that a resume, an evaluation or the report reads.

    recipe.yaml                  the resolved recipe
    meta.json                    code, packages, machine and command of each process of the run
    axpo.log                     what the console showed, each line with the time
    logs/                        what engines, ranks and tool servers printed, a file for each
    metrics.jsonl                one JSON object a line: `step` and that step's numbers
    held_out.jsonl               one JSON object an evaluation: `step` and each question's counts
    events.jsonl                 what happened when: start, resume, dropped groups, checkpoints
    rollouts.jsonl               what happened to each question and worker (`axpo.record.ledger`)
    timeline/step_0001.json      when each rollout of a step ran, and waited for tools
    trajectories/step_0001.jsonl sampled groups; their images in trajectories/images/
    held_out/step_0001.jsonl     some held-out groups of an evaluation; images as those above
    rollouts/step_0001.jsonl     with --rollouts-only: all groups of a step, exactly, for --replay
    checkpoints/step_0001/       written by the learner (`axpo.record.checkpoints`); its questions/
                                 by `axpo.training.cursor`
    summary.json                 held-out numbers before and after; exists only if the run ended
    lock                         the process that writes here
    profile/step_0001/           torch's profiler, if the recipe asks for it
    trackers.json                what finds the run again in each of `logging.trackers`
    tensorboard/, wandb/, ...    files of these trackers

metrics.jsonl, held_out.jsonl and events.jsonl grow by complete lines. The other files are replaced
at once, so that a kill leaves the old one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from axpo.errors import AxpoError
from axpo.record.checkpoints import Checkpoints
from axpo.record.files import (
    MAX_DIGITS,
    append_row,
    by_step,
    read_rows,
    read_text,
    replace_file,
    step_name,
)
from axpo.record.forms import check_bar, check_group
from axpo.record.lock import RunLock
from axpo.record.records import (
    Credited,
    Decode,
    ImageFolder,
    completed,
    group_from_json,
    group_to_json,
)
from axpo.record.summary import read_summary
from axpo.record.timeline import bars
from axpo.record.tracked import Tracking
from axpo.strict_yaml import read_yaml
from axpo.texts import closest, one_line
from axpo.trackers import Tracker, check_all
from learner.credit import Carried
from rollout_workers.trajectory import Group

TRAINING_GROUPS, HELD_OUT_GROUPS = "trajectories", "held_out"
"""Folders of kept groups, a file a step."""
START_KNOWN = "start evaluation known"
"""The event of a run that took the start model's held-out numbers from a file."""
LARGEST = 1e30
"""Of a metric. Larger numbers overflow when a curve is drawn."""


class RunDirectory:
    """Write a run's files and read them back.

    `open` is for reading. `create` and `resume` are for writing: they hold the directory's lock
    until `close`, so that one process writes a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = ImageFolder(path / "trajectories" / "images", root=path)
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.damaged: list[str] = []
        """What was wrong with newer checkpoints than the one that a resume goes back to."""
        self.unreadable: list[str] = []
        """Which records were left out, and why."""
        self._exact_images = ImageFolder(path / "rollouts" / "images", exact=True, root=path)
        self._lock: RunLock | None = None
        self.tracking = Tracking(self)

    @classmethod
    def create(
        cls,
        name: str,
        recipe: Mapping[str, Any],
        root: str | Path = "runs",
        *,
        trackers: Sequence[Tracker] = (),
    ) -> RunDirectory:
        """Make the directory `root/name`, write the recipe into it, and lock it.

        Args:
            name: a plain folder name.
            recipe: the resolved recipe.
            root: the folder of all runs.
            trackers: what else gets metrics and trajectories.

        Raises:
            AxpoError: the name is no folder name, the directory exists (nothing is overwritten), or
                a tracker is not installed or does not start.
        """
        if not name or Path(name).name != name:
            raise AxpoError(f"run name {name!r}: expected a plain folder name, without '/'")
        # Before anything is written: a run that cannot start leaves no directory behind.
        check_all(trackers)
        path = Path(root) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise AxpoError(
                f"{path} already exists: "
                f"continue it with --resume {path}, or choose another run name"
            ) from None
        run = cls(path)
        run._lock = RunLock(path)
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        replace_file(path / "recipe.yaml", text)
        try:
            run.tracking.start(trackers)
        except AxpoError:
            run.close()
            shutil.rmtree(path)
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Return an existing run for reading. Raises AxpoError if `path` is no run directory."""
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            raise AxpoError(
                f"{path} is not a run directory: expected a recipe.yaml in it{_meant(path)}"
            )
        return cls(path)

    @classmethod
    def resume(
        cls, path: str | Path, *, trackers: Sequence[Tracker] = ()
    ) -> tuple[RunDirectory, int]:
        """Lock an existing run and wind it back to its last undamaged checkpoint.

        Damaged checkpoints are set aside, and `damaged` says what is wrong with them.

        Returns:
            The run and the step of that checkpoint, 0 if there is none.

        Raises:
            AxpoError: another process holds the run, the run has ended, or a tracker is not
                installed or does not start.
        """
        check_all(trackers)
        run = cls.open(path)
        run._lock = RunLock(run.path)
        if read_summary(run.path) is not None:
            # A refusal must not hold the lock: this process may go on.
            run.close()
            raise AxpoError(f"{run.path} has ended (it has a summary.json): nothing to resume")
        step = run.wind_back()
        try:
            run.tracking.start(trackers, step)
        except AxpoError:
            run.close()
            raise
        return run, step

    def wind_back(self) -> int:
        """Go back to the last undamaged checkpoint, set damaged ones aside; return its step.

        0 if there is none. What later steps wrote is dropped: they run again.
        """
        self.checkpoints.delete_partial()
        step = self._last_undamaged()
        self._rewind(step)
        self.tracking.wind_back(step)
        return step

    def recipe(self) -> dict[str, Any]:
        """Return the resolved recipe as it was written."""
        file = self.path / "recipe.yaml"
        try:
            recipe = read_yaml(read_text(file))
        except ValueError as error:
            raise AxpoError(f"{file}: not readable: {one_line(str(error))}") from None
        if not isinstance(recipe, dict):
            raise AxpoError(f"{file}: expected a recipe")
        return recipe

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step's numbers and flush. A number that is not finite becomes null."""
        row: dict[str, float | None] = {"step": step}
        for name, value in values.items():
            # JSON has no nan and no inf: the line would not be readable elsewhere.
            row[name] = float(value) if math.isfinite(value) else None
        append_row(self.path / "metrics.jsonl", row)
        self.tracking.log(step, values)

    def metrics(self) -> list[dict[str, Any]]:
        """Return one row a step, in order of steps. Later lines of a step add to earlier ones.

        What is no number of a step is left out.
        """
        rows: dict[int, dict[str, Any]] = {}
        for row in read_rows(self.path / "metrics.jsonl"):
            step = row.get("step")
            if isinstance(step, int) and 0 <= step < 10**MAX_DIGITS:
                rows.setdefault(step, {}).update(_numbers_of(row))
        return [rows[step] for step in sorted(rows)]

    def log_held_out(self, step: int, counts: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Append what an evaluation counted (`axpo.evaluation.diagnostics.question_counts`)."""
        append_row(self.path / "held_out.jsonl", {"step": step, "counts": counts})

    def held_out(self) -> list[dict[str, Any]]:
        """Return `step` and `counts` of each evaluated step, in order of steps.

        If a step was evaluated more than once, its last evaluation counts.
        """
        rows = {row["step"]: row for row in read_rows(self.path / "held_out.jsonl")}
        return [rows[step] for step in sorted(rows)]

    def log_event(self, event: str, **fields: Any) -> None:
        """Append what happened, with the time (UTC)."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append_row(self.path / "events.jsonl", {"time": now, "event": event} | fields)

    def start_is_known(self) -> bool:
        """Tell whether the start model's held-out numbers came with it: it made no rollouts."""
        events = read_rows(self.path / "events.jsonl")
        return any(row.get("event") == START_KNOWN for row in events)

    def save_groups(
        self,
        step: int,
        groups: Sequence[Group],
        decode: Decode,
        items: Sequence[Credited] = (),
        limit: int = 4,
    ) -> None:
        """Keep some of a step's groups for people to read, those with resamples first.

        Args:
            step: the step, counted from 1.
            groups: all groups of the step.
            decode: token ids to text.
            items: the step's train items; they add the credit of each trajectory.
            limit: how many groups are kept at most.
        """
        if limit < 1 or not groups:
            return
        # The sort is stable: apart from that the groups keep their order.
        chosen = sorted(groups, key=lambda group: not (group.resamples or group.carried))[:limit]
        records = [group_to_json(group, step, decode, self.images, items) for group in chosen]
        _write_rows(self._groups_file(step), records)
        self.tracking.table(step, records)

    def complete_groups(
        self, carried: Sequence[Carried], decode: Decode, items: Sequence[Credited]
    ) -> None:
        """Add the forks of carried groups to those of them that were kept.

        Args:
            carried: groups of earlier updates whose forks are back.
            decode: token ids to text.
            items: the train items of the sources and continuations.
        """
        for step in sorted({late.trained.step + 1 for late in carried}):
            of_step = [late.group for late in carried if late.trained.step + 1 == step]
            made = [group_to_json(group, step, decode, self.images, items) for group in of_step]
            whole = {record["question"]["id"]: record for record in made}
            kept = [completed(record, whole) for record in self.groups(step)]
            if kept:
                _write_rows(self._groups_file(step), kept)

    def save_held_out(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Keep held-out groups of the evaluation after a step, for people to read."""
        records = [group_to_json(group, step, decode, self.images) for group in groups]
        if records:
            _write_rows(self.path / HELD_OUT_GROUPS / f"{step_name(step)}.jsonl", records)

    def group_steps(self) -> list[int]:
        """Return the steps with kept groups, in order."""
        return [step for step, _ in by_step(self.path / TRAINING_GROUPS, ".jsonl")]

    def groups(self, step: int) -> list[dict[str, Any]]:
        """Return the kept groups of a step as records (`axpo.record.records.group_to_json`).

        Records that are no groups are left out, and noted in `unreadable`.
        """
        file = self._groups_file(step)
        groups = []
        for number, record in enumerate(read_rows(file), 1):
            with self._noted(f"{file}, record {number}"):
                check_group(record)
                groups.append(record)
        return groups

    def save_rollouts(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Keep all of a step's groups, exactly, for `replay`."""
        records = [group_to_json(group, step, decode, self._exact_images) for group in groups]
        path = self.path / "rollouts" / f"{step_name(step)}.jsonl"
        path.parent.mkdir(exist_ok=True)
        replace_file(path, "".join(json.dumps(record) + "\n" for record in records))

    def rollouts(self) -> Iterator[tuple[int, list[Group]]]:
        """Yield the step and the groups of all that `save_rollouts` kept, in order of steps.

        Records that are no groups are left out, and noted in `unreadable`.
        """
        for step, file in by_step(self.path / "rollouts", ".jsonl"):
            groups = []
            for number, record in enumerate(read_rows(file), 1):
                with self._noted(f"{file}, record {number}"):
                    groups.append(group_from_json(record, self._exact_images))
            yield step, groups

    def save_timeline(
        self, step: int, groups: Sequence[Group], resampled: Sequence[Group] | None = None
    ) -> None:
        """Keep when each rollout and continuation of a step ran (see `axpo.record.timeline`).

        Args:
            step: the step, counted from 1.
            groups: whose rollouts are of the step.
            resampled: whose continuations are; those of `groups` if None.
        """
        path = self._timeline_file(step)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps(bars(groups, resampled)) + "\n")

    def timeline(self, step: int) -> list[dict[str, Any]]:
        """Return the bars of a step's timeline; [] if there is none."""
        file = self._timeline_file(step)
        if not file.exists():
            return []
        timeline: list[dict[str, Any]] = []
        with self._noted(str(file)):
            written = json.loads(read_text(file))
            for bar in written:
                check_bar(bar)
            timeline = written
        return timeline

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the last `keep` checkpoints and the one with the best held-out Pass@1."""
        scores = {}
        for row in self.metrics():
            if row.get("eval/pass1") is not None:
                scores[row["step"]] = row["eval/pass1"]
        self.checkpoints.prune(keep, scores)

    def close(self) -> None:
        """Release the lock, and end the trackers."""
        self.tracking.stop()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _noted(self, where: str) -> Iterator[None]:
        """Leave out a record that cannot be read, and note why."""
        try:
            yield
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.unreadable.append(f"{where}: {one_line(str(error))}")

    def _groups_file(self, step: int) -> Path:
        return self.path / TRAINING_GROUPS / f"{step_name(step)}.jsonl"

    def _timeline_file(self, step: int) -> Path:
        return self.path / "timeline" / f"{step_name(step)}.json"

    def _last_undamaged(self) -> int:
        """Set damaged checkpoints aside; return the step of the last other one, 0 without one."""
        # Newest first: a resume loses as few steps as possible.
        for checkpoint in reversed(self.checkpoints.complete()):
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint.step
            self.damaged.append(damage)
            self.log_event("damaged checkpoint", step=checkpoint.step, reason=damage)
            checkpoint.set_aside()
        return 0

    def _rewind(self, step: int) -> None:
        """Drop what later steps wrote: they run again."""
        for file in (self.path / "metrics.jsonl", self.path / "held_out.jsonl"):
            kept = [row for row in read_rows(file) if row["step"] <= step]
            replace_file(file, "".join(json.dumps(row) + "\n" for row in kept))
        # Later timelines may stay: the report shows those of steps with metrics only, and the next
        # run of a step replaces its file.
        for folder in (TRAINING_GROUPS, HELD_OUT_GROUPS):
            for later, file in by_step(self.path / folder, ".jsonl"):
                if later > step:
                    file.unlink()


def _meant(path: Path) -> str:
    """Return "; did you mean ...?" if a run beside a path has almost its name, or ""."""
    near = closest(path.name, [recipe.parent.name for recipe in path.parent.glob("*/recipe.yaml")])
    return f"; did you mean {path.parent / near}?" if near else ""


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line, all or nothing."""
    file.parent.mkdir(exist_ok=True)
    replace_file(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a row of metrics that can be drawn, or that were not finite."""
    kept: dict[str, Any] = {}
    for name, value in row.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (is_number and abs(value) <= LARGEST):
            kept[name] = value
    return kept
