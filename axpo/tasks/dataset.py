"""Ask a user's own questions, from files or a Hugging Face data set.

The recipe says which columns hold what, where images are (by path or as bytes), and which verifier
judges the answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from axpo.registry import Registered
from axpo.tasks.data import MAX_BAD_ROWS, DataImages, epoch_order
from axpo.tasks.row_check import Tell, check_images, check_rows
from axpo.tasks.rows import Columns, Meaning, Rows
from axpo.tasks.selection import Selection
from axpo.tasks.task import Fits, Task, TaskConfig, tasks
from axpo.tasks.verifiers import Exact, Verifier
from rollout_workers.trajectory import Question


def _source_of(given: Any) -> Any:
    return {"path": given} if isinstance(given, str) else given


SourceOrPath = Annotated[Selection, BeforeValidator(_source_of)]


@tasks.register("jsonl")  # the name in older recipes
@tasks.register("dataset")
class DatasetConfig(TaskConfig):
    """Rows of a JSONL file or a Hugging Face dataset, with columns and a verifier of your choice.

    A row is like {"question": "...", "images": ["a.png"], "answer": "7"}; the paths of images are
    relative to the file.
    """

    train: SourceOrPath = Field(
        description="training questions: a file, or path and split of a data set"
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
    max_bad_rows: float = Field(
        MAX_BAD_ROWS,
        ge=0,
        le=1,
        description="share of the rows of a source that may be bad: a run sets them aside. With "
        "more it does not start",
    )

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Check the rows of both sources, with the headers of their images.

        Of a large source an even sample is checked, see `axpo.tasks.row_check`.

        Args:
            fits: checks that a question fits the context; None: that is not checked.

        Returns:
            Which rows a run sets aside, because they are bad or do not fit the context.

        Raises:
            AxpoError: there is no such data, too many rows are bad, or none fits the context.
                Names source, row and column. Or the verifier's settings cannot work here.
        """
        self.verifier.check_settings()
        set_aside: list[str] = []
        held_out_fits = fits.held_out if fits is not None else None
        for source, fitting in ((self.train, fits), (self.held_out, held_out_fits)):
            faults = check_rows(Rows(source, self.meaning), fitting)
            set_aside += faults.judged(self.max_bad_rows)
        return set_aside

    def check_images(self, folder: Path, tell: Tell) -> list[str]:
        """Decode every image of both sources; return and raise as `check_inputs`.

        Args:
            folder: has the notes of an earlier check, and gets those of this one.
            tell: is told of the progress.
        """
        set_aside: list[str] = []
        for source in (self.train, self.held_out):
            faults = check_images(Rows(source, self.meaning), folder, tell)
            set_aside += faults.judged(self.max_bad_rows)
        return set_aside

    def check_service(self, timeout_s: float | None = None) -> None:
        """Raise AxpoError if the judge, if the verifier has one, does not answer."""
        self.verifier.check_service(timeout_s)

    @property
    def meaning(self) -> Meaning:
        """Return what the rows of both sources mean."""
        return Meaning(self.columns, self.verifier, self.images)

    def load(self) -> DatasetTask:
        """Return the task.

        Raises:
            AxpoError: there is no such data.
        """
        return DatasetTask(self)


class DatasetTask(Task):
    """Ask the questions of a dataset, in a new order every epoch."""

    def __init__(self, config: DatasetConfig) -> None:
        """Open both sources; raise AxpoError if there is no such data."""
        self.system = config.system
        self._verifier = config.verifier
        self._seed = 0
        self._train = Rows(config.train, config.meaning)
        self._held_out = Rows(config.held_out, config.meaning)

    def shuffle(self, seed: int) -> None:
        """Order the rows by the run's seed."""
        self._seed = seed

    def train(self, index: int) -> Question:
        """Return training question number `index`; with a `fault` if its row is bad."""
        # The epoch is in the id: a question that comes again is a question of its own.
        epoch, position = divmod(index, len(self._train))
        order = epoch_order(len(self._train), f"{self._seed}/epoch/{epoch}")
        return self._train.question(order[position], f"e{epoch}-")

    def held_out(self) -> list[Question]:
        """Return the held-out questions, in the order of their rows."""
        rows = self._held_out
        return [rows.question(number, "test-") for number in range(len(rows))]

    def verify(self, question: Question, answer: str | None) -> float:
        """Return the reward that the recipe's verifier gives."""
        return self._verifier.reward(question, answer)

    def set_aside(self, question_id: str, reason: str) -> None:
        """Give the row of a training question as a faulty question from now on."""
        row = question_id.rpartition("-")[2]
        self._train.set_aside(int(row) - 1, reason)

    def __getstate__(self) -> dict[str, Any]:
        # Only `verify` is sent to the rollout workers: the rows stay here.
        return {"system": self.system, "_verifier": self._verifier}
