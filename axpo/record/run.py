"""The run directory: everything a run writes down and a resume, an evaluation or the report reads back.

    recipe.yaml                  the resolved recipe
    metrics.jsonl                one JSON object a line: `step` and that step's numbers
    held_out.jsonl               one JSON object an evaluation: `step` and the counts of each question
    events.jsonl                 what happened when: start, resume, dropped groups, checkpoints
    rollouts.jsonl               what happened to each question and worker (see `axpo.record.ledger`)
    timeline/step_0001.json      when each rollout of a step ran, and waited for tools
    trajectories/step_0001.jsonl sampled groups; their images in trajectories/images/
    rollouts/step_0001.jsonl     with --rollouts-only: every group of a step, exactly, for --replay
    checkpoints/step_0001/       written by the learner under the name .step_0001.partial, then renamed; its questions/ by `axpo.training.cursor`
    summary.json                 held-out numbers before and after; there only when the run ended
    tensorboard/                 when asked for

metrics.jsonl, held_out.jsonl and events.jsonl grow by whole lines; the other files are replaced whole, so that a kill leaves the old one.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.record.checkpoints import Checkpoints
from axpo.record.files import append_row, read_rows, replace_file, step_name, step_of
from axpo.record.records import Credited, Decode, ImageFolder, group_from_json, group_to_json
from axpo.record.summary import read_summary
from axpo.record.timeline import bars
from rollout_workers.trajectory import Group


class RunDirectory:
    """Opened for reading by default. A writer holds the directory's lock until `close`: one run, one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = ImageFolder(path / "trajectories" / "images")
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.damaged: list[str] = []
        """What was wrong with newer checkpoints than the one that a resume goes back to."""
        self._exact_images = ImageFolder(path / "rollouts" / "images", exact=True)
        self._lock: int | None = None
        self._tensorboard: Any = None

    @classmethod
    def create(
        cls,
        name: str,
        recipe: Mapping[str, Any],
        root: str | Path = "runs",
        *,
        tensorboard: bool = False,
    ) -> RunDirectory:
        """A new directory `root/name` with its recipe, locked. Raises AxpoError if it exists; nothing is overwritten."""
        if not name or Path(name).name != name:
            raise AxpoError(f"run name {name!r}: expected a plain folder name, without '/'")
        writer = _summary_writer() if tensorboard else None
        path = Path(root) / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise AxpoError(
                f"{path} already exists: continue it with --resume {path}, or choose another run name"
            ) from None
        run = cls(path)
        run._acquire()
        import yaml

        replace_file(
            path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        )
        if writer is not None:
            run._tensorboard = writer(str(path / "tensorboard"))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run, to read. Raises AxpoError where `path` is no run directory."""
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            raise AxpoError(f"{path} is not a run directory: expected a recipe.yaml in it")
        return cls(path)

    @classmethod
    def resume(cls, path: str | Path, *, tensorboard: bool = False) -> tuple[RunDirectory, int]:
        """An existing run, locked and wound back to its last undamaged checkpoint, and that checkpoint's step (0 without one).

        A damaged one is set aside and told in `damaged`. Raises AxpoError where another process holds the run, or the run has ended.
        """
        writer = _summary_writer() if tensorboard else None
        run = cls.open(path)
        run._acquire()
        if read_summary(run.path) is not None:
            run.close()
            raise AxpoError(f"{run.path} has ended (it has a summary.json): nothing to resume")
        run.checkpoints.delete_partial()
        step = run._last_undamaged()
        run._rewind(step)
        if writer is not None:
            run._tensorboard = writer(str(run.path / "tensorboard"), purge_step=step + 1)
        return run, step

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as it was written."""
        import yaml

        return yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step's numbers and flush. A number that is not finite becomes null: the line stays JSON."""
        row = {"step": step} | {
            name: float(v) if math.isfinite(v) else None for name, v in values.items()
        }
        append_row(self.path / "metrics.jsonl", row)
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """One row a step in order of steps; later lines of a step add to earlier ones. A line cut off by a kill is skipped."""
        rows: dict[int, dict[str, Any]] = {}
        for row in read_rows(self.path / "metrics.jsonl"):
            rows.setdefault(row["step"], {}).update(row)
        return [rows[step] for step in sorted(rows)]

    def log_held_out(self, step: int, counts: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Append what an evaluation counted (`axpo.training.metrics.question_counts`)."""
        append_row(self.path / "held_out.jsonl", {"step": step, "counts": counts})

    def held_out(self) -> list[dict[str, Any]]:
        """`step` and `counts` of each evaluated step, in order of steps; the last of those that a step has."""
        rows = {row["step"]: row for row in read_rows(self.path / "held_out.jsonl")}
        return [rows[step] for step in sorted(rows)]

    def log_event(self, event: str, **fields: Any) -> None:
        """Append what happened, with the time (UTC)."""
        append_row(
            self.path / "events.jsonl",
            {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | fields,
        )

    def save_groups(
        self,
        step: int,
        groups: Sequence[Group],
        decode: Decode,
        items: Sequence[Credited] = (),
        limit: int = 4,
    ) -> None:
        """Keep at most `limit` of a step's groups, resampled ones first; `items` add the credit of each trajectory."""
        if limit < 1 or not groups:
            return
        chosen = sorted(groups, key=lambda g: not g.resamples)[:limit]
        records = [group_to_json(g, step, decode, self.images, items) for g in chosen]
        path = self._groups_file(step)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def save_rollouts(self, step: int, groups: Sequence[Group], decode: Decode) -> None:
        """Keep all of a step's groups, exactly, for `replay`."""
        path = self.path / "rollouts" / f"{step_name(step)}.jsonl"
        path.parent.mkdir(exist_ok=True)
        replace_file(
            path,
            "".join(
                json.dumps(group_to_json(g, step, decode, self._exact_images)) + "\n"
                for g in groups
            ),
        )

    def rollouts(self) -> Iterator[tuple[int, list[Group]]]:
        """Step and groups of everything that `save_rollouts` kept, in order of steps."""
        for file in sorted((self.path / "rollouts").glob("step_*.jsonl")):
            if (step := step_of(file.stem)) is not None:
                yield (
                    step,
                    [group_from_json(record, self._exact_images) for record in read_rows(file)],
                )

    def save_timeline(self, step: int, groups: Sequence[Group]) -> None:
        """When each rollout and fork of a step ran (see `axpo.report.timeline`)."""
        path = self._timeline_file(step)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps(bars(groups)) + "\n")

    def timeline(self, step: int) -> list[dict[str, Any]]:
        """The bars of a step's timeline; [] where there is none."""
        file = self._timeline_file(step)
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def group_steps(self) -> list[int]:
        """Steps with kept groups, in order."""
        return sorted(
            step
            for file in (self.path / "trajectories").glob("step_*.jsonl")
            if (step := step_of(file.stem)) is not None
        )

    def groups(self, step: int) -> list[dict[str, Any]]:
        """The kept groups of a step as records (`axpo.record.records.group_to_json`)."""
        return list(read_rows(self._groups_file(step)))

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the last `keep` checkpoints and the one with the best held-out Pass@1."""
        scores = {}
        for row in self.metrics():
            if row.get("eval/pass1") is not None:
                scores[row["step"]] = row["eval/pass1"]
        self.checkpoints.prune(keep, scores)

    def close(self) -> None:
        """Release the lock and flush TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _groups_file(self, step: int) -> Path:
        return self.path / "trajectories" / f"{step_name(step)}.jsonl"

    def _timeline_file(self, step: int) -> Path:
        return self.path / "timeline" / f"{step_name(step)}.json"

    def _acquire(self) -> None:
        # The kernel drops the lock with the process, however it ends: a killed run can be resumed at once.
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 100).decode(errors="replace").strip()
            os.close(lock)
            raise AxpoError(
                f"{self.path} is in use by process {holder or 'unknown'}: wait for it or choose another run name"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = lock

    def _last_undamaged(self) -> int:
        """Return the step of the last undamaged checkpoint, 0 without one; set damaged ones aside."""
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
        for later in self.group_steps():
            if later > step:
                self._groups_file(later).unlink()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise AxpoError(
            "tensorboard is not installed: `pip install tensorboard`, or switch it off in the recipe"
        ) from None
    return SummaryWriter
