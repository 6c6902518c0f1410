"""Where the questions of a run stand between two steps: the part of a checkpoint that is not the learner's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axpo.record.records import ImageFolder, group_from_json, group_to_json
from resampler.history import History, PastBatch
from rollout_workers.trajectory import Group

FOLDER = "questions"


@dataclass(frozen=True)
class Kept:
    """A group that is finished, with its forks, and not yet trained on."""

    index: int  # of its question in the task's order
    version: int  # of the policy that began it
    group: Group


@dataclass(frozen=True)
class Cursor:
    """What a resume needs to lose no question and to ask none twice, but those that were still under way."""

    following: int = 0  # the next question, in the task's order
    batch: int = (
        0  # the next batch of the resampler's budget; the seeds of its rollouts derive from it
    )
    pending: tuple[int, ...] = ()  # questions to ask again, first of all
    kept: tuple[Kept, ...] = ()
    history: History | None = None  # what finished batches taught the resampler

    def save(self, checkpoint: Path) -> None:
        """Into the folder of a checkpoint, exactly."""
        folder = checkpoint / FOLDER
        folder.mkdir()
        images = ImageFolder(folder / "images", exact=True)
        numbers = {
            "following": self.following,
            "batch": self.batch,
            "pending": self.pending,
            "history": asdict(self.history) if self.history else None,
        }
        (folder / "cursor.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")
        with (folder / "groups.jsonl").open("w", encoding="utf-8") as lines:
            for kept in self.kept:
                group = group_to_json(kept.group, kept.version, lambda ids: "", images)
                lines.write(
                    json.dumps({"index": kept.index, "version": kept.version, "group": group})
                    + "\n"
                )


def load_cursor(checkpoint: Path) -> Cursor | None:
    """The cursor in the folder of a checkpoint; None in one that a replay wrote, which asked no question."""
    folder = checkpoint / FOLDER
    if not folder.exists():
        return None
    images = ImageFolder(folder / "images", exact=True)
    numbers = json.loads((folder / "cursor.json").read_text(encoding="utf-8"))
    rows = map(json.loads, (folder / "groups.jsonl").read_text(encoding="utf-8").splitlines())
    kept = tuple(
        Kept(row["index"], row["version"], group_from_json(row["group"], images)) for row in rows
    )
    return Cursor(
        numbers["following"],
        numbers["batch"],
        tuple(numbers["pending"]),
        kept,
        _history(numbers.get("history")),
    )


def _history(record: dict[str, Any] | None) -> History | None:
    """None for a checkpoint written before it was kept, or kept as it is now."""
    if record is None or any("entries" not in batch for batch in record["past"]):
        return None
    past = tuple(
        PastBatch(
            batch["questions"],
            tuple((place, score, price) for place, score, price in batch["entries"]),
            tuple(batch["rewards"]),
        )
        for batch in record["past"]
    )
    return History(
        tuple(record["recoveries"]),
        past,
        tuple((tool, seconds) for tool, seconds in record["costs"]),
    )
