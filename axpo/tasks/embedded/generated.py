"""What the tasks that draw their own questions share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from axpo.tasks.task import SYSTEM, Task
from axpo.tasks.verifiers import exact_match
from rollout_workers.trajectory import Question


class HeldOut(Protocol):
    """A configuration with a number of held-out questions."""

    @property
    def held_out(self) -> int: ...


C = TypeVar("C", bound=HeldOut)


class Generated(Task, Generic[C]):
    """Every question is a pure function of (split, index), so that data order and resume need no state; answers are matched exactly."""

    system = SYSTEM

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def _question(self, split: str, index: int) -> tuple[Question, Any, Any]:
        """The question, what is behind it, and the random source that drew it. `split`: train, test or an SFT lesson's name."""

    def train(self, index: int) -> Question:
        return self._question("train", index)[0]

    def held_out(self) -> list[Question]:
        return [self._question("test", i)[0] for i in range(self.config.held_out)]

    def verify(self, question: Question, answer: str | None) -> float:
        return exact_match(answer, question.answer)
