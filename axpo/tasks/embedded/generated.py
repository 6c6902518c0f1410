"""What the tasks that draw their own questions share."""

from __future__ import annotations

import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import Field

from axpo.tasks.embedded.pictures import Split
from axpo.tasks.task import SYSTEM, Fits, Task, TaskConfig
from axpo.tasks.verifiers import exact_match
from rollout_workers.trajectory import Question


class GeneratedConfig(TaskConfig):
    """The settings that every task of this kind has."""

    held_out: int = Field(256, ge=1, description="number of held-out questions")

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Check that the first questions fit the context; nothing else can be missing.

        Digits, photographs and the corpus of wines come with the packages. The search index of the
        wines belongs to the tool, which does not start without it.
        """
        if fits is None:
            return []
        task = self.load()
        assert isinstance(task, Generated)
        held_out = task.draw("test", 0).question
        return [
            *self._misfits(task.train(0), fits),
            *self._misfits(held_out, fits.held_out, "its first held-out question"),
        ]


Config = TypeVar("Config", bound=GeneratedConfig)
Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Drawn(Generic[Shown]):
    """A question, what its picture shows, and the random source that drew it.

    The teacher goes on with the same random source.
    """

    question: Question
    shown: Shown
    rng: random.Random


class Generated(Task, Generic[Config, Shown]):
    """Draw every question as a pure function of (split, index), and match answers exactly.

    So the order of the data and a resumed run need no saved state.
    """

    system = SYSTEM

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def draw(self, split: str, index: int) -> Drawn[Shown]:
        """Draw question number `index` of a split: "train", "test" or the name of an SFT lesson."""

    def train(self, index: int) -> Question:
        """Return training question number `index`."""
        return self.draw("train", index).question

    def held_out(self) -> list[Question]:
        """Return the held-out questions."""
        return [self.draw("test", index).question for index in range(self.config.held_out)]

    def verify(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the boxed answer is the truth, else 0.0."""
        return exact_match(answer, question.answer)


def picture_split(split: str) -> Split:
    """Return whose digits a question of a split shows: SFT lessons use those of training."""
    return "test" if split == "test" else "train"
