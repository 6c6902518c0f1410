"""A user's questions from JSONL or a Hugging Face dataset: columns of one's own, images by path or bytes, a verifier by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from axpo.errors import AxpoError
from axpo.tasks.data import Source, epoch_order, image_source
from axpo.tasks.task import Task
from axpo.tasks.verifiers import Verifier
from rollout_workers.trajectory import Question
from tool_server.images import ImageError, ImageLimits, check, decode

SourceOrPath = Annotated[
    Source, BeforeValidator(lambda given: {"path": given} if isinstance(given, str) else given)
]
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]


class Columns(BaseModel):
    """Which column of the data is which part of a question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(
        "question",
        description="the text; `<image>` marks in it are left out: images stand before the text",
    )
    answer: str = Field("answer", description="a text or a number")
    images: Names = Field(
        ("images",),
        description="columns with an image or a list of images; []: questions of text alone",
    )
    info: Names = Field(
        (), description="further columns that a verifier of yours finds in `question.info`"
    )


class DatasetConfig(BaseModel):
    """Rows like {"question": "...", "images": ["a.png"], "answer": "7"}; image paths are relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dataset", "jsonl"] = Field(
        "dataset", description="`jsonl` is the name in older recipes"
    )
    train: SourceOrPath = Field(
        description="training questions: a .jsonl file, or path and split of a dataset"
    )
    held_out: SourceOrPath = Field(description="held-out questions, likewise")
    columns: Columns = Columns()
    verify: str = Field(
        "exact", description="exact, numeric, choice, math, or package.module:function of yours"
    )
    tolerance: float = Field(
        0.0,
        ge=0,
        description="of numeric: largest difference from the truth t, in units of max(1, |t|)",
    )
    system: str | None = Field("Give the final answer in \\boxed{}.", description="system text")
    images: ImageLimits = Field(
        default_factory=ImageLimits, description="limits of the questions' images"
    )

    @field_validator("verify")
    @classmethod
    def _known(cls, verify: str) -> str:
        try:
            Verifier(verify).check()
        except ValueError as error:
            raise PydanticCustomError("verifier", "{error}", {"error": str(error)}) from None
        return verify

    def check_inputs(self) -> None:
        """Read every row of both sources, and the header of every image. Raises AxpoError naming source, row and field."""
        for source in (self.train, self.held_out):
            rows = Rows(source, self)
            for number in range(len(rows)):
                rows.check(number)

    def load(self) -> DatasetTask:
        """The task. Raises AxpoError where there is no such data."""
        return DatasetTask(self)


class DatasetTask(Task):
    """Questions in a new order every epoch."""

    def __init__(self, config: DatasetConfig) -> None:
        """Raises AxpoError where there is no such data."""
        self.system = config.system
        self._verifier = Verifier(config.verify, config.tolerance)
        self._train, self._held_out = Rows(config.train, config), Rows(config.held_out, config)

    def train(self, index: int) -> Question:
        epoch, position = divmod(index, len(self._train))
        return self._train.question(
            epoch_order(len(self._train), f"epoch/{epoch}")[position], f"e{epoch}-"
        )

    def held_out(self) -> list[Question]:
        return [self._held_out.question(number, "test-") for number in range(len(self._held_out))]

    def verify(self, question: Question, answer: str | None) -> float:
        return self._verifier(question, answer)

    def __getstate__(self) -> dict[str, Any]:
        # Only `verify` is sent to the rollout workers: the rows stay here.
        return {"system": self.system, "_verifier": self._verifier}


class Rows:
    """One source, row by row (from 0; messages count from 1)."""

    def __init__(self, source: Source, config: DatasetConfig) -> None:
        """Raises AxpoError where there is no such data."""
        self._rows, self._source, self._config = source.rows(), source, config

    def __len__(self) -> int:
        return len(self._rows)

    def question(self, number: int, prefix: str) -> Question:
        """A row with its images decoded. Raises AxpoError naming row and column."""
        return self._read(number, prefix, decode)

    def check(self, number: int) -> None:
        """Raises what `question` would, from the images' headers alone, and where the verifier cannot use the row's answer."""
        question = self._read(number, "", check)
        with self._named(number, self._config.columns.answer):
            Verifier(self._config.verify).check_truth(question.answer)

    def _read(
        self, number: int, prefix: str, use: Callable[[Path | bytes, ImageLimits], Any]
    ) -> Question:
        row, columns = self._rows[number], self._config.columns
        with self._named(number, columns.question):
            text = _text(row, columns.question, "a text", str).replace("<image>", "").strip()
        with self._named(number, columns.answer):
            answer = _text(row, columns.answer, "a text or a number", str | int | float).strip()
        images = [
            image for name in columns.images for image in self._images(number, row, name, use)
        ]
        if columns.images and not images:
            raise AxpoError(
                f"{self._where(number)}: {', '.join(columns.images)}: expected at least one image"
            )
        info = {}
        for name in columns.info:
            with self._named(number, name):
                info[name] = _value(row, name)
        return Question(f"{prefix}{number + 1}", text, tuple(images), answer, info)

    def _images(
        self,
        number: int,
        row: Mapping[str, Any],
        name: str,
        use: Callable[[Path | bytes, ImageLimits], Any],
    ) -> list[Any]:
        used = []
        with self._named(number, name):
            value = _value(row, name)
            images = [
                image
                for image in (value if isinstance(value, list) else [value])
                if image is not None
            ]
            for place, image in enumerate(images, 1):
                source = image_source(image, self._source.folder)
                try:
                    used.append(use(source, self._config.images))
                except ImageError as error:
                    raise ValueError(
                        f"{source if isinstance(source, Path) else f'image {place}'} {error}"
                    ) from None
        return used

    def _where(self, number: int) -> str:
        return f"{self._source.path}, row {number + 1}"

    @contextmanager
    def _named(self, number: int, column: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise AxpoError(f"{self._where(number)}: {column}: {error}") from None


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"missing; the row has {', '.join(row) or 'no columns'}")
    return row[name]


def _text(row: Mapping[str, Any], name: str, expected: str, kinds: Any) -> str:
    value = _value(row, name)
    if not isinstance(value, kinds) or isinstance(value, bool) or not str(value).strip():
        raise ValueError(f"expected {expected}, found {str(value)[:80]!r}")
    return str(value)
