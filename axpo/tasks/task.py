"""What a task is to the rest of the program."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, TypeAlias

from rollout_workers.trajectory import Pixels, Question

SYSTEM = "You are a careful visual assistant. Give the final answer in \\boxed{}."

Turns: TypeAlias = list[str | tuple[str, tuple[Pixels, ...]]]
"""A scripted rollout: policy turns as text and, after each but the last, the tool's result (text, images)."""


class Task(Protocol):
    """A class of yours inherits from this one; `train`, `held_out` and `verify` are enough."""

    system: str | None = "Give the final answer in \\boxed{}."

    @abstractmethod
    def train(self, index: int) -> Question:
        """The `index`-th training question (0, 1, 2 ... without end): data order is this function, so resume needs no state."""

    @abstractmethod
    def held_out(self) -> list[Question]:
        """The held-out questions, always the same."""

    @abstractmethod
    def verify(self, question: Question, answer: str | None) -> float:
        """Reward of the text after `</think>` of the last turn (None: no answer was given).

        Runs in threads of the rollout workers. What it raises, an answer that is no finite number and more than `rollout.verify_s`
        seconds are failures of infrastructure: the rollout gets no reward, and its group is dropped and counted.
        """

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """An SFT example, and whether its prompt shows system text and tools. Raises KeyError for a kind it does not have."""
        raise KeyError(f"{kind!r}: this task has no examples")
