"""Ask a user's own questions, from JSONL or a Hugging Face dataset.

The recipe says which columns hold what, where images are (by path or as bytes), and which verifier
judges the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from axpo.errors import AxpoError
from axpo.registry import Registered
from axpo.tasks.data import (
    DataImages,
    Row,
    Source,
    epoch_order,
    image_source,
    without_marks,
)
from axpo.tasks.task import Fits, Task, TaskConfig, tasks
from axpo.tasks.verifiers import Exact, Verifier
from rollout_workers.trajectory import LazyImage, Pixels, Question, UnusableQuestion
from tool_server.images import ImageError, ImageLimits, check, decode

T = TypeVar("T")


def _source_of(given: Any) -> Any:
    return {"path": given} if isinstance(given, str) else given


def _names_of(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


SourceOrPath = Annotated[Source, BeforeValidator(_source_of)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names_of)]


class Columns(BaseModel):
    """Which column of the data is which part of a question."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(
        "question",
        description="the text; images stand where `<image>` marks are in it, without marks before "
        "it",
    )
    answer: str = Field("answer", description="a text or a number")
    images: Names = Field(
        ("images",),
        description="columns with an image or a list of images; []: questions of text alone",
    )
    info: Names = Field(
        (), description="further columns that a verifier of yours finds in `question.info`"
    )


@tasks.register("jsonl")  # the name in older recipes
@tasks.register("dataset")
class DatasetConfig(TaskConfig):
    """Rows of a JSONL file or a Hugging Face dataset, with columns and a verifier of your choice.

    A row is like {"question": "...", "images": ["a.png"], "answer": "7"}; the paths of images are
    relative to the file.
    """

    train: SourceOrPath = Field(
        description="training questions: a .jsonl file, or path and split of a dataset"
    )
    held_out: SourceOrPath = Field(description="held-out questions, likewise")
    columns: Columns = Columns()
    verifier: Annotated[Verifier, Registered()] = Field(
        default=Exact(), description="how answers are judged: `axpo list verifiers`"
    )
    system: str | None = Field("Give the final answer in \\boxed{}.", description="system text")
    images: DataImages = Field(
        default_factory=DataImages, description="limits of the questions' images"
    )

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Read every row of both sources, and the header of every image.

        Args:
            fits: checks that a question fits the context; None: that is not checked.

        Returns:
            Which rows do not fit the context: a run sets them aside.

        Raises:
            AxpoError: something is wrong with a row; names source, row and column. Or no row of a
                source fits the context.
        """
        misfits: list[str] = []
        for source in (self.train, self.held_out):
            rows = Rows(source, self)
            found = [rows.check(number, fits) for number in range(len(rows))]
            of_source = [misfit for misfit in found if misfit is not None]
            if len(of_source) == len(rows):
                raise AxpoError(f"{of_source[0]}; no row of {source.path} fits the context")
            misfits += of_source
        return misfits

    def load(self) -> DatasetTask:
        """Return the task.

        Raises:
            AxpoError: there is no such data.
        """
        return DatasetTask(self)


class DatasetTask(Task):
    """Ask the questions of a dataset, in a new order every epoch."""

    def __init__(self, config: DatasetConfig) -> None:
        """Read both sources; raise AxpoError if there is no such data."""
        self.system = config.system
        self._verifier = config.verifier
        self._train = Rows(config.train, config)
        self._held_out = Rows(config.held_out, config)

    def train(self, index: int) -> Question:
        """Return training question number `index`."""
        # The epoch is in the id: a question that comes again is a question of its own.
        epoch, position = divmod(index, len(self._train))
        order = epoch_order(len(self._train), f"epoch/{epoch}")
        return self._train.question(order[position], f"e{epoch}-")

    def held_out(self) -> list[Question]:
        """Return the held-out questions, in the order of their rows."""
        rows = self._held_out
        return [rows.question(number, "test-") for number in range(len(rows))]

    def verify(self, question: Question, answer: str | None) -> float:
        """Return the reward that the recipe's verifier gives."""
        return self._verifier.reward(question, answer)

    def __getstate__(self) -> dict[str, Any]:
        # Only `verify` is sent to the rollout workers: the rows stay here.
        return {"system": self.system, "_verifier": self._verifier}


@dataclass(frozen=True)
class _Found:
    """Where one image of a row is."""

    column: str
    index: int  # in the list of the column
    place: int  # among the column's images, from 1, for messages


class Rows:
    """Turn the rows of one source into questions.

    Rows are numbered from 0 here, and from 1 in messages and in the ids of questions.
    """

    def __init__(self, source: Source, config: DatasetConfig) -> None:
        """Read the source; raise AxpoError if there is no such data."""
        self._rows = source.rows()
        self._source = source
        self._config = config

    def __len__(self) -> int:
        return len(self._rows)

    def question(self, number: int, prefix: str) -> Question:
        """Return a row as a question whose images are decoded when they are needed.

        Args:
            number: which row.
            prefix: what the question's id begins with.

        Raises:
            AxpoError: something is wrong with the row; names row and column.
        """
        row = self._rows[number]
        found = self._images(number, row)
        # The row is read again for them: it may hold their bytes, which nobody should keep.
        lazy = tuple(LazyImage(partial(self._decode, number, one)) for one in found)
        return replace(
            self._question(number, row, len(lazy)), id=f"{prefix}{number + 1}", images=lazy
        )

    def check(self, number: int, fits: Fits | None = None) -> str | None:
        """Check a row without decoding its images.

        Args:
            number: which row.
            fits: checks that a question fits the context; None: that is not checked.

        Returns:
            Why the row does not fit the context; None if it does.

        Raises:
            AxpoError: something is wrong with the row, as far as the headers of its images tell,
                or the verifier cannot use its answer.
        """
        row = self._rows[number]
        sizes = []
        for found in self._images(number, row):
            with self._faults_of(number, found.column):
                sizes.append(self._use(row, found, check))
        question = self._question(number, row, len(sizes))
        with self._faults_of(number, self._config.columns.answer):
            self._config.verifier.check_truth(question.answer)
        if fits is not None:
            try:
                fits(question.text, sizes)
            except ValueError as error:
                return f"{self._where(number)}: {error}"
        return None

    def _question(self, number: int, row: Row, images: int) -> Question:
        """Return a row as a question that lacks its images."""
        columns = self._config.columns
        with self._faults_of(number, columns.question):
            written = _text(row, columns.question, "a text", str)
            text, places = without_marks(written, images)
        with self._faults_of(number, columns.answer):
            answer = _text(row, columns.answer, "a text or a number", str | int | float)
        info = {}
        for name in columns.info:
            with self._faults_of(number, name):
                info[name] = _value(row, name)
        return Question(
            id=str(number + 1),
            text=text,
            images=(),
            answer=answer.strip(),
            info=info,
            image_places=places,
        )

    def _images(self, number: int, row: Row) -> list[_Found]:
        """Return where the images of a row are; empty places are skipped."""
        found: list[_Found] = []
        for name in self._config.columns.images:
            with self._faults_of(number, name):
                values = _listed(_value(row, name))
            # Data sets leave the columns of missing images empty.
            there = [index for index, value in enumerate(values) if value is not None]
            found += [_Found(name, index, place) for place, index in enumerate(there, 1)]
        # A recipe that names no image columns asks questions of text alone.
        if self._config.columns.images and not found:
            names = ", ".join(self._config.columns.images)
            raise AxpoError(f"{self._where(number)}: {names}: expected at least one image")
        return found

    def _decode(self, number: int, found: _Found) -> Pixels:
        try:
            with self._faults_of(number, found.column):
                return self._use(self._rows[number], found, decode)
        except AxpoError as error:
            raise UnusableQuestion(str(error)) from None

    def _use(self, row: Row, found: _Found, use: Callable[[Path | bytes, ImageLimits], T]) -> T:
        image = _listed(_value(row, found.column))[found.index]
        source = image_source(image, self._source.folder)
        try:
            return use(source, self._config.images)
        except ImageError as error:
            name = source if isinstance(source, Path) else f"image {found.place}"
            raise ValueError(f"{name} {error}") from None

    def _where(self, number: int) -> str:
        return f"{self._source.path}, row {number + 1}"

    @contextmanager
    def _faults_of(self, number: int, column: str) -> Iterator[None]:
        """Name the row and the column in what is raised inside."""
        try:
            yield
        except ValueError as error:
            raise AxpoError(f"{self._where(number)}: {column}: {error}") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(row: Row, name: str) -> Any:
    if name not in row:
        raise ValueError(f"missing; the row has {', '.join(row) or 'no columns'}")
    return row[name]


def _text(row: Row, name: str, expected: str, kinds: Any) -> str:
    """Return a column as text; raise ValueError if it is empty or none of `kinds`."""
    value = _value(row, name)
    # In Python a bool is an int too.
    of_kind = isinstance(value, kinds) and not isinstance(value, bool)
    if not of_kind or not str(value).strip():
        found = str(value)[:80]
        raise ValueError(f"expected {expected}, found {found!r}")
    return str(value)
