"""Ask a user's own questions, from JSONL or a Hugging Face dataset.

The recipe says which columns hold what, where images are (by path or as bytes), and which verifier
judges the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from axpo.errors import AxpoError
from axpo.registry import Registered
from axpo.tasks.data import Row, Source, epoch_order, image_source
from axpo.tasks.task import Task, TaskConfig, tasks
from axpo.tasks.verifiers import Exact, Verifier
from rollout_workers.trajectory import Question
from tool_server.images import ImageError, ImageLimits, check, decode

Use: TypeAlias = Callable[[Path | bytes, ImageLimits], Any]
"""What is done with an encoded image: `decode` or `check`."""


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
    images: ImageLimits = Field(
        default_factory=ImageLimits, description="limits of the questions' images"
    )

    def check_inputs(self) -> None:
        """Read every row of both sources, and the header of every image.

        Raises:
            AxpoError: something is wrong with a row; names source, row and column.
        """
        for source in (self.train, self.held_out):
            rows = Rows(source, self)
            for number in range(len(rows)):
                rows.check(number)

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
        """Return a row with its images decoded.

        Args:
            number: which row.
            prefix: what the question's id begins with.

        Raises:
            AxpoError: something is wrong with the row; names row and column.
        """
        return self._read(number, prefix, decode)

    def check(self, number: int) -> None:
        """Check a row without decoding its images.

        Raises:
            AxpoError: what `question` would raise, as far as the headers of the images tell, or
                the verifier cannot use the row's answer.
        """
        question = self._read(number, "", check)
        with self._faults_of(number, self._config.columns.answer):
            self._config.verifier.check_truth(question.answer)

    def _read(self, number: int, prefix: str, use: Use) -> Question:
        row, columns = self._rows[number], self._config.columns
        with self._faults_of(number, columns.question):
            text = _text(row, columns.question, "a text", str)
        with self._faults_of(number, columns.answer):
            answer = _text(row, columns.answer, "a text or a number", str | int | float)
        images: list[Any] = []
        for name in columns.images:
            images += self._images(number, name, use)
        # A recipe that names no image columns asks questions of text alone.
        if columns.images and not images:
            names = ", ".join(columns.images)
            raise AxpoError(f"{self._where(number)}: {names}: expected at least one image")
        info = {}
        for name in columns.info:
            with self._faults_of(number, name):
                info[name] = _value(row, name)
        return Question(
            id=f"{prefix}{number + 1}",
            text=text.replace("<image>", "").strip(),  # images stand before the text
            images=tuple(images),
            answer=answer.strip(),
            info=info,
        )

    def _images(self, number: int, name: str, use: Use) -> list[Any]:
        """Return what `use` makes of the images of one column; empty places are skipped."""
        with self._faults_of(number, name):
            value = _value(self._rows[number], name)
            values = value if isinstance(value, list) else [value]
            # Data sets leave the columns of missing images empty.
            images = [image for image in values if image is not None]
            numbered = enumerate(images, 1)
            return [self._use_image(image, place, use) for place, image in numbered]

    def _use_image(self, image: Any, place: int, use: Use) -> Any:
        source = image_source(image, self._source.folder)
        try:
            return use(source, self._config.images)
        except ImageError as error:
            name = source if isinstance(source, Path) else f"image {place}"
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
