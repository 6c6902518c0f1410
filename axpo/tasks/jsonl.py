"""A user's questions from JSONL: one object a line with question, images (paths) and answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from axpo.errors import AxpoError
from axpo.tasks.verify import exact_match
from rollout_workers.trajectory import Pixels, Question
from tool_server.images import ImageError, ImageLimits, check, decode


class JsonlConfig(BaseModel):
    """Rows like {"question": "...", "images": ["a.png"], "answer": "7"}; image paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["jsonl"] = "jsonl"
    train: str = Field(description="JSONL file of training questions")
    held_out: str = Field(description="JSONL file of held-out questions")
    system: str | None = Field("Give the final answer in \\boxed{}.", description="system text")
    images: ImageLimits = Field(default_factory=ImageLimits, description="limits of the questions' images")

    def check_inputs(self) -> None:
        """Read every row of both files. Raises AxpoError naming file, row and field."""
        for path in (self.train, self.held_out):
            for row in read_rows(Path(path)):
                for image in row["images"]:
                    with _named(image, row["where"]):
                        check(image, self.images)


class JsonlTask:
    """Questions in file order, reshuffled every epoch; reward: exact match of the boxed answer."""

    def __init__(self, config: JsonlConfig) -> None:
        self.system = config.system
        self._limits = config.images
        self._train = read_rows(Path(config.train))
        self._held_out = read_rows(Path(config.held_out))

    def train(self, index: int) -> Question:
        epoch, position = divmod(index, len(self._train))
        order = list(range(len(self._train)))
        random.Random(f"epoch/{epoch}").shuffle(order)
        return self._question(self._train[order[position]], f"e{epoch}-")

    def held_out(self) -> list[Question]:
        return [self._question(row, "test-") for row in self._held_out]

    def verify(self, question: Question, answer: str | None) -> float:
        return exact_match(answer, question.answer)

    def example(self, kind: str, index: int) -> Any:
        raise KeyError(f"{kind!r}: a jsonl task has no demonstrations")

    def _question(self, row: dict[str, Any], prefix: str) -> Question:
        images: list[Pixels] = []
        for path in row["images"]:
            with _named(path, row["where"]):
                images.append(decode(path, self._limits))
        return Question(f"{prefix}{row['id']}", row["question"], tuple(images), row["answer"])


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Checked rows of a JSONL file. Raises AxpoError naming file, row and field."""
    if not file.is_file():
        raise AxpoError(f"task data {file}: no such file")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, row {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise AxpoError(f"{where}: not JSON: {error}") from None
        images = row.get("images") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
            raise AxpoError(f"{where}: question: expected a text")
        if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
            raise AxpoError(f"{where}: images: expected a list with at least one path")
        if not isinstance(row.get("answer"), str | int | float) or not str(row["answer"]).strip():
            raise AxpoError(f"{where}: answer: expected a text or a number")
        paths = [file.parent / image for image in images]
        rows.append({"id": number, "question": row["question"], "images": paths, "answer": str(row["answer"]), "where": where})
    if not rows:
        raise AxpoError(f"task data {file}: no rows")
    return rows


@contextmanager
def _named(path: Path, where: str) -> Iterator[None]:
    """An ImageError inside becomes an AxpoError that names the row and the file."""
    try:
        yield
    except ImageError as error:
        raise AxpoError(f"{where}: images: {path} {error}") from None
