"""Give all that a recipe trains on as questions: the rows of its task, and its demonstrations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.tasks.data import DataConfig, DataImages, Folders, Row, Source, image_source, listed
from axpo.tasks.dataset import DatasetConfig
from axpo.tasks.mixed import MixedConfig
from axpo.tasks.rows import Meaning, Rows
from rollout_workers.trajectory import LazyImage, Pixels, Question, UnusableQuestion, unusable
from tool_server.images import ImageError, ImageLimits, decode


@dataclass(frozen=True)
class Trained:
    """One source that is trained on."""

    source: Source
    rows: int
    questions: Iterator[Question]
    """One a row, with a `fault` if its row cannot be read."""


def trained_on(recipe: Recipe) -> list[Trained]:
    """Return the sources of a recipe, with all of their rows, whatever it keeps of them.

    Raises:
        AxpoError: there is none, or one cannot be read.
    """
    parts = [recipe.task]
    if isinstance(recipe.task, MixedConfig):
        parts = [family.task for family in recipe.task.families.values()]
    found = [_of_task(part) for part in parts if isinstance(part, DatasetConfig)]
    stages = [stage.data for stage in recipe.sft.stages if stage.data] if recipe.sft else []
    found += [_of_stage(data) for data in dict.fromkeys(stages)]
    if not found:
        raise AxpoError(
            f"{recipe.name}: nothing to compare, it trains on no rows (task.kind: dataset, "
            "sft.stages[].data)"
        )
    return found


def _of_task(task: DatasetConfig) -> Trained:
    source = task.train.model_copy(update={"keep": {}, "without": None})
    rows = Rows(source, Meaning(task.columns, task.verifier, _whole(task.images)))
    return Trained(source, len(rows), (rows.question(number, "") for number in range(len(rows))))


def _of_stage(data: DataConfig) -> Trained:
    table = data.rows(("messages", "images"))

    def questions() -> Iterator[Question]:
        for number in range(len(table)):
            name = str(number + 1)
            try:
                yield _asked(name, table.row(number), data)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = f"{data.path}, row {name}: no chat: {type(error).__name__}: {error}"
                yield unusable(name, reason)

    return Trained(data, len(table), questions())


def _asked(name: str, row: Row, data: DataConfig) -> Question:
    """Return what the first user of a chat asks, with all images of the chat."""
    messages = row["messages"]
    if isinstance(messages, str):
        messages = json.loads(messages)
    content, *_ = [one["content"] for one in messages if one["role"] == "user"]
    parts = [{"text": content}] if isinstance(content, str) else content
    text = "\n".join(part.get("text") or "" for part in parts)
    images = listed(row.get("images") or [])
    limits, folders = _whole(data.images), data.folders
    lazy = [LazyImage(partial(_decode, name, image, folders, limits)) for image in images]
    return Question(name, text, tuple(lazy), "")


def _decode(name: str, image: Any, folders: Folders, limits: ImageLimits) -> Pixels:
    try:
        return decode(image_source(image, folders), limits)
    except (ImageError, ValueError) as error:
        raise UnusableQuestion(f"row {name}: {error}") from None


def _whole(limits: DataImages) -> DataImages:
    """Return limits that scale nothing down: the pictures of benchmarks are not, either."""
    return limits.model_copy(update={"scale_above": None})
