"""Where the questions of a run stand between two steps.

This is the part of a checkpoint that is not the learner's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from axpo.record.records import ImageFolder, group_from_json, group_to_json
from axpo.training.in_flight import Prefix
from learner.credit import Update
from resampler.history import History, PastBatch
from rollout_workers.trajectory import Group

FOLDER = "questions"


@dataclass(frozen=True)
class Kept:
    """A group that is finished, and not yet trained on in whole."""

    index: int  # of its question in the task's order
    version: int  # of the policy that began it
    group: Group  # with the resamples that are there
    batch: int = 0  # number of its batch; the seeds of its forks derive from it
    under_way: tuple[Prefix, ...] = ()  # carried forks whose continuations are not there
    trained: Update | None = None  # what trained it without what it carries; None: nothing


@dataclass(frozen=True)
class Cursor:
    """What a resume needs to lose no question, and to ask again only those that were under way."""

    following: int = 0  # the next question, in the task's order
    batch: int = 0  # number of the next batch; the seeds of its rollouts derive from it
    pending: tuple[int, ...] = ()  # questions to ask again, first of all
    kept: tuple[Kept, ...] = ()
    history: History | None = None  # what finished batches taught the resampler
    set_aside: Mapping[str, str] = field(default_factory=dict)
    """Why questions cannot be asked, by their ids: a resume does not try them again."""
    carried: tuple[Kept, ...] = ()  # trained on, but for the sources of their carried forks

    def save(self, checkpoint: Path) -> None:
        """Write it into the folder of a checkpoint, exactly."""
        folder = checkpoint / FOLDER
        folder.mkdir()
        # Exact, so that a resumed run trains on the same numbers as one that was never stopped.
        images = ImageFolder(folder / "images", exact=True)
        numbers = {
            "following": self.following,
            "batch": self.batch,
            "pending": self.pending,
            "history": asdict(self.history) if self.history else None,
            "set_aside": dict(self.set_aside),
        }
        (folder / "cursor.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
        for name, groups in (("groups", self.kept), ("carried", self.carried)):
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
                for kept in groups:
                    lines.write(json.dumps(_kept_to_json(kept, images)) + "\n")


def load_cursor(checkpoint: Path) -> Cursor | None:
    """Return the cursor in the folder of a checkpoint.

    None for a checkpoint that a replay wrote: a replay asks no question.
    """
    folder = checkpoint / FOLDER
    if not folder.exists():
        return None
    images = ImageFolder(folder / "images", exact=True)
    numbers = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
    return Cursor(
        following=numbers["following"],
        batch=numbers["batch"],
        pending=tuple(numbers["pending"]),
        kept=_kept_of(folder / "groups.jsonl", images),
        carried=_kept_of(folder / "carried.jsonl", images),
        history=_history(numbers.get("history")),
        set_aside=numbers.get("set_aside", {}),
    )


def _kept_of(file: Path, images: ImageFolder) -> tuple[Kept, ...]:
    """Return the groups of a file; none if an older version wrote the checkpoint without it."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return tuple(_kept_from_json(json.loads(line), images) for line in lines)


def _kept_to_json(kept: Kept, images: ImageFolder) -> dict[str, Any]:
    return {
        "index": kept.index,
        "version": kept.version,
        "group": group_to_json(kept.group, kept.version, _no_text, images),
        "batch": kept.batch,
        "under_way": kept.under_way,
        "trained": kept.trained,
    }


def _kept_from_json(row: Mapping[str, Any], images: ImageFolder) -> Kept:
    return Kept(
        index=row["index"],
        version=row["version"],
        group=group_from_json(row["group"], images),
        batch=row.get("batch", 0),
        under_way=tuple(Prefix(*prefix) for prefix in row.get("under_way", ())),
        trained=Update(*row["trained"]) if row.get("trained") else None,
    )


def _no_text(ids: object) -> str:
    """Decode nothing: nobody reads the text of a checkpoint."""
    return ""


def _history(record: Mapping[str, Any] | None) -> History | None:
    """Return the history of a record.

    None for a checkpoint that was written before the history was kept, or kept in this form.
    """
    if record is None or any("entries" not in batch for batch in record["past"]):
        return None
    return History(
        recoveries=tuple(record["recoveries"]),
        past=tuple(_past_batch(batch) for batch in record["past"]),
        costs=tuple((tool, seconds) for tool, seconds in record["costs"]),
    )


def _past_batch(record: Mapping[str, Any]) -> PastBatch:
    # JSON has lists only; the history compares and travels as tuples.
    entries = tuple((place, score, price) for place, score, price in record["entries"])
    return PastBatch(record["questions"], entries, tuple(record["rewards"]))
