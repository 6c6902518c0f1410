"""Turn the rows of a source into questions, and say what is wrong with a row.

A row that cannot be asked is a question with a `fault`: a run sets it aside and goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from axpo.tasks.cells import text_of, truth_of, value_at
from axpo.tasks.data import DataImages, Row, image_source, listed, without_marks
from axpo.tasks.selection import Selection
from axpo.tasks.task import Fits
from axpo.tasks.verifiers import Verifier
from axpo.texts import check_text, one_line
from rollout_workers.trajectory import LazyImage, Pixels, Question, UnusableQuestion, unusable
from tool_server.images import ImageError, ImageLimits, check, decode

T = TypeVar("T")
Use = Callable[[Path | bytes, ImageLimits], T]
"""What is done with an image: `check` reads its header, `decode` its pixels."""


class BadRow(ValueError):
    """A row that cannot be asked. The message is one line that names source, row and column."""


class Misfit(BadRow):
    """A row that is sound, but does not fit the context of the model."""


def _names_of(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


Names = Annotated[tuple[str, ...], BeforeValidator(_names_of)]


class Columns(BaseModel):
    """Which column of the data is which part of a question.

    What is inside of a column has a name too: `reward_model.ground_truth`, `prompt.0.content`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(
        "question",
        description="the text; images stand where `<image>` marks are in it, without marks before "
        "it",
    )
    answer: Names = Field(
        ("answer",),
        min_length=1,
        description="a text or a number, or a list of texts that are accepted; of several columns "
        "all are accepted, and all but the first may be empty",
    )
    answer_is_boxed: bool = Field(
        False, description="the answer stands in \\boxed{}, as the data writes it"
    )
    images: Names = Field(
        ("images",),
        description="columns with an image or a list of images; []: questions of text alone",
    )
    images_required: bool = Field(
        True, description="a row without any image is bad; false: it is a question of text alone"
    )
    info: Names = Field(
        (), description="further columns that a verifier of yours finds in `question.info`"
    )

    @property
    def names(self) -> frozenset[str]:
        """Return the columns that are read."""
        return top_level((self.question, *self.answer, *self.images, *self.info))


def top_level(names: Iterable[str]) -> frozenset[str]:
    """Return the columns that hold what is named, and the names themselves."""
    listed_names = tuple(names)
    return frozenset((*listed_names, *(name.partition(".")[0] for name in listed_names)))


@dataclass(frozen=True)
class Meaning:
    """What the rows of a source mean."""

    columns: Columns
    verifier: Verifier
    images: DataImages


@dataclass(frozen=True)
class _Found:
    """Where one image of a row is."""

    column: str
    index: int  # in the list of the column
    place: int  # among the column's images, from 1, for messages


class Rows:
    """The rows of one source as questions.

    The rows that are asked are numbered from 0 here. Messages and the ids of questions have the
    number of the row in the source, from 1.
    """

    in_threads = True

    def __init__(self, source: Selection, meaning: Meaning) -> None:
        """Open the source; raise AxpoError if there is no such data, or no row is chosen."""
        self.path = source.path
        self._source = source
        self._table = source.rows(meaning.columns.names | top_level(source.keep))
        self._folders = source.folders
        self._meaning = meaning
        self._columns = meaning.columns
        self._chosen = self._choose()
        self._set_aside: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def digest(self) -> str:
        """Return a name for this source, read with these columns and limits."""
        parts = (self._source, self._columns, self._meaning.images)
        text = "".join(part.model_dump_json() for part in parts) + str(len(self))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def set_aside(self, row: int, reason: str) -> None:
        """Take note that a row cannot be asked, for a reason that was found in a run.

        Args:
            row: its number in the source, from 0.
            reason: one line.
        """
        self._set_aside[row] = reason

    def question(self, number: int, prefix: str) -> Question:
        """Return a row as a question whose images are decoded when they are needed.

        Args:
            number: which row.
            prefix: what the question's id begins with.

        Returns:
            The question; with a `fault` if something is wrong with the row.
        """
        in_source = self._chosen[number]
        name = f"{prefix}{in_source + 1}"
        if in_source in self._set_aside:
            return unusable(name, self._set_aside[in_source])
        try:
            row = self._row(number)
            found = self._images(number, row)
            question = self._question(number, row, len(found))
        except BadRow as error:
            return unusable(name, str(error))
        # The row is read again for them: it may hold their bytes, which nobody should keep.
        lazy = tuple(LazyImage(partial(self._decode, number, one)) for one in found)
        return replace(question, id=name, images=lazy)

    def check(self, number: int, fits: Fits | None) -> None:
        """Check a row without decoding its images.

        Args:
            number: which row.
            fits: checks that a question fits the context; None: that is not checked.

        Raises:
            BadRow: something is wrong with the row, as far as the headers of its images tell.
            Misfit: the question does not fit the context.
        """
        row = self._row(number)
        found = self._images(number, row)
        sizes = [self._use(number, row, one, check) for one in found]
        question = self._question(number, row, len(found))
        if fits is not None:
            try:
                fits(question.text, sizes)
            except ValueError as error:
                raise Misfit(f"{self._where(number)}: {error}") from None

    def files(self, number: int) -> list[Path | bytes]:
        """Return what the images of a row are read from; raise BadRow if it does not tell."""
        row = self._row(number)
        found = self._images(number, row)
        return [self._use(number, row, one, lambda source, _: source) for one in found]

    def decode(self, number: int) -> None:
        """Decode the images of a row; raise BadRow if one cannot be read."""
        row = self._row(number)
        for found in self._images(number, row):
            self._use(number, row, found, decode)

    def _row(self, number: int) -> Row:
        try:
            return self._table.row(self._chosen[number])
        except ValueError as error:
            raise BadRow(f"{self._where(number)}: {error}") from None

    def _choose(self) -> list[int] | range:
        """Return which rows are asked."""
        names = top_level(self._source.keep)
        known = names.intersection(self._table.columns or names)
        # Images are not read for a condition. A table without columns would have no rows.
        table = self._source.rows(known) if known else self._table
        return self._source.chosen(
            len(table), lambda number, name: self._value(table.row(number), name)
        )

    def _question(self, number: int, row: Row, images: int) -> Question:
        """Return a row as a question that lacks its images."""
        columns = self._columns
        with self._faults_of(number, columns.question):
            written = text_of(self._value(row, columns.question))
            text, places = without_marks(written, images)
        with self._faults_of(number, ", ".join(columns.answer)):
            answer = self._truth(row)
        for name in self._source.keep:
            with self._faults_of(number, name):
                self._value(row, name)
        info = {}
        for name in columns.info:
            with self._faults_of(number, name):
                info[name] = self._value(row, name)
                check_text(info[name])
        question = Question(
            id=str(number + 1), text=text, images=(), answer=answer, info=info, image_places=places
        )
        with self._faults_of(number, ", ".join(columns.answer)):
            self._check_truth(question)
        return question

    def _truth(self, row: Row) -> str:
        """Return the accepted answers of a row, in the order of their columns."""
        values = [self._value(row, name) for name in self._columns.answer]
        return truth_of(values, boxes=self._columns.answer_is_boxed)

    def _check_truth(self, question: Question) -> None:
        try:
            self._meaning.verifier.check_question(question)
        except ValueError:
            raise
        except Exception as error:  # the verifier may be the user's: anything may happen in it
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _images(self, number: int, row: Row) -> list[_Found]:
        """Return where the images of a row are; empty places are skipped."""
        found: list[_Found] = []
        for name in self._columns.images:
            with self._faults_of(number, name):
                values = listed(self._value(row, name))
            # Data sets leave the columns of missing images empty.
            there = [index for index, value in enumerate(values) if value is not None]
            found += [_Found(name, index, place) for place, index in enumerate(there, 1)]
        # A recipe that names no image columns asks questions of text alone.
        columns = self._columns.images
        if columns and not found and self._columns.images_required:
            raise BadRow(
                f"{self._where(number)}: {', '.join(columns)}: expected at least one image; if "
                "rows of text alone are meant, say `columns: {images_required: false}`"
            )
        return found

    def _decode(self, number: int, found: _Found) -> Pixels:
        try:
            return self._use(number, self._row(number), found, decode)
        except BadRow as error:
            raise UnusableQuestion(str(error)) from None

    def _use(self, number: int, row: Row, found: _Found, use: Use[T]) -> T:
        with self._faults_of(number, found.column):
            image = listed(self._value(row, found.column))[found.index]
            source = image_source(image, self._folders)
            try:
                return use(source, self._meaning.images)
            except ImageError as error:
                name = source if isinstance(source, Path) else f"image {found.place}"
                raise ValueError(f"{name} {error}") from None

    def _value(self, row: Row, name: str) -> Any:
        try:
            return value_at(row, name)
        except KeyError:
            columns = ", ".join(self._table.columns or row) or "no columns"
            raise ValueError(f"missing; the row has {one_line(columns, 200)}") from None

    def _where(self, number: int) -> str:
        return f"{self.path}, row {self._chosen[number] + 1}"

    @contextmanager
    def _faults_of(self, number: int, column: str) -> Iterator[None]:
        """Name the row and the column in what is raised inside."""
        try:
            yield
        except ValueError as error:
            reason = one_line(str(error))
            raise BadRow(f"{self._where(number)}: {column}: {reason}") from None
