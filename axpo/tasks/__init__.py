"""Tasks: where questions come from, how an answer is verified, and what a teacher would have done.

A task is a small class with the methods of `Task`; its configuration is one entry of the recipe's `task` section.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, TypeAlias

from pydantic import Field

from axpo.tasks.jsonl import JsonlConfig, JsonlTask
from axpo.tasks.small_digit import SmallDigit, SmallDigitConfig, Turns
from rollout_workers.trajectory import Question

TaskConfig: TypeAlias = Annotated[SmallDigitConfig | JsonlConfig, Field(discriminator="kind")]

__all__ = ["Task", "TaskConfig", "Turns", "load_task"]


class Task(Protocol):
    system: str | None

    def train(self, index: int) -> Question:
        """The `index`-th training question (0, 1, 2 ... without end): data order is this function, so resume needs no state."""

    def held_out(self) -> list[Question]:
        """The held-out questions, always the same."""

    def verify(self, question: Question, answer: str | None) -> float:
        """Reward of the text after `</think>` of the last turn (None: no answer was given). Runs in the rollout workers."""

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """An SFT example, and whether its prompt shows system text and tools. Raises KeyError for a kind it does not have."""


def load_task(config: Any) -> Task:
    """The task of a recipe's `task` section."""
    return SmallDigit(config) if isinstance(config, SmallDigitConfig) else JsonlTask(config)
