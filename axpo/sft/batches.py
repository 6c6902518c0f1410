"""Make the batches of a stage of fine-tuning: scripted trajectories, from a task or from rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from axpo.errors import AxpoError
from axpo.sft.demonstrations import Demonstrations, check_control_tokens
from axpo.tasks import Task
from axpo.texts import check_text
from learner.credit import TrainItem, sft_items
from rollout_workers.chat import Chat
from rollout_workers.trajectory import Pixels, PolicySegment, Question, Trajectory


class Examples(Protocol):
    """An endless series of examples of each kind."""

    def example(self, kind: str, index: int) -> tuple[Question, Trajectory]:
        """Return example number `index`, with its question."""

    @property
    def set_aside(self) -> list[str]:
        """Return why rows were set aside so far, a line each."""


@dataclass(frozen=True)
class Shown:
    """What a tool of a task's example showed."""

    text: str
    images: tuple[Pixels, ...]


class TaskExamples:
    """The examples of a task, as the chat writes them."""

    def __init__(self, task: Task, chat: Chat, schemas: list[dict[str, Any]], stage: int) -> None:
        self._task, self._chat, self._schemas = task, chat, schemas
        # Every stage sees examples of its own.
        self._first = stage << 32
        self.set_aside: list[str] = []  # a task makes its examples itself: none is bad

    def example(self, kind: str, index: int) -> tuple[Question, Trajectory]:
        """Return example number `index` of this stage.

        Raises:
            AxpoError: the task's teacher writes what no policy may write.
        """
        question, turns, with_tools = self._task.example(kind, self._first + index)
        scripted: list[str | Sequence[Shown]] = [
            turn if isinstance(turn, str) else [Shown(*turn)] for turn in turns
        ]
        # A bare prompt has neither tools nor system text.
        schemas = self._schemas if with_tools else []
        system = self._task.system if with_tools else None
        try:
            check_text([turn for turn in scripted if isinstance(turn, str)])
            trajectory = self._chat.trajectory(question, schemas, system, scripted)
            for segment in trajectory.segments:
                if isinstance(segment, PolicySegment):
                    check_control_tokens(segment.token_ids[:-1], self._chat, "a turn")
        except ValueError as error:
            raise AxpoError(f"example {index} of kind {kind!r} of the task: {error}") from None
        return question, trajectory


class RowExamples:
    """The rows of a data set, which has one kind of examples."""

    def __init__(self, rows: Demonstrations) -> None:
        self._rows = rows

    def example(self, kind: str, index: int) -> tuple[Question, Trajectory]:
        """Return example number `index`, whatever the kind."""
        return self._rows.example(index)

    @property
    def set_aside(self) -> list[str]:
        """Return why rows were set aside so far."""
        return list(self._rows.set_aside.values())


class Batches:
    """The batches of a stage; each is a function of its step.

    A batch has examples of one kind. They are of like length, so no padding is wasted.
    """

    def __init__(
        self, examples: Examples, mix: Mapping[str, float], batch_size: int, seed: str
    ) -> None:
        """Prepare the batches; make none yet.

        Args:
            examples: what gives the examples.
            mix: kinds of examples, and the share of the batches that each gets.
            batch_size: examples a batch.
            seed: what the kinds of the batches are drawn from.
        """
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self.kinds = list(mix)
        self._shares = list(mix.values())

    @property
    def set_aside(self) -> list[str]:
        """Return why examples were set aside so far, a line each."""
        return self._examples.set_aside

    def kind(self, step: int) -> str:
        """Return the kind of examples in the batch of a step."""
        rng = random.Random(f"{self._seed}/{step}")
        return rng.choices(self.kinds, self._shares)[0]

    def items(self, step: int) -> list[TrainItem]:
        """Return the batch of a step."""
        kind, first = self.kind(step), step * self._batch_size
        indices = range(first, first + self._batch_size)
        return sft_items([self._examples.example(kind, index) for index in indices])
