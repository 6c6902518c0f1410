"""Define what a task is to the rest of the program, and the registry of the kinds of tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from axpo import texts
from axpo.errors import AxpoError
from axpo.registry import Registry, Variant
from rollout_workers.image_rule import ImageRule
from rollout_workers.trajectory import Pixels, Question, UnusableQuestion, unusable
from tool_server.images import MAX_ASPECT

SYSTEM = "You are a careful visual assistant. Give the final answer in \\boxed{}."

Turns: TypeAlias = list[str | tuple[str, tuple[Pixels, ...]]]
"""A scripted rollout: the policy's turns as text and, after each but the last, the tool's result
as (text, images)."""


class Fits(Protocol):
    """Checks that questions fit the context."""

    def __call__(self, text: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Take a question's text and the width and height of each of its images.

        Raises ValueError if they do not fit the context.
        """

    @property
    def held_out(self) -> Fits:
        """Return what checks held-out questions: their prompt has the tools of evaluations too."""


class Example(NamedTuple):
    """One example of supervised fine-tuning: a question, and how a teacher dealt with it."""

    question: Question
    turns: Turns
    with_tools: bool  # does the prompt show the system text and the tools?


class Task(Protocol):
    """Ask questions and verify answers.

    A class of yours inherits from this one; `train`, `held_out` and `verify` are enough.
    """

    system: str | None = "Give the final answer in \\boxed{}."

    @abstractmethod
    def train(self, index: int) -> Question:
        """Return training question number `index` (0, 1, 2 ... without end).

        The order of the data is this function, so a resumed run needs no saved state. What cannot
        be asked because its data is at fault raises `UnusableQuestion`: the run sets it aside and
        goes on with the next question.
        """

    @abstractmethod
    def held_out(self) -> list[Question]:
        """Return the held-out questions, always the same."""

    @abstractmethod
    def verify(self, question: Question, answer: str | None) -> float:
        """Return the reward of an answer.

        It runs in threads of the rollout workers. If it raises, takes longer than
        `rollout.verify_s` seconds or returns no finite number, then infrastructure failed: the
        rollout gets no reward, and its group is dropped and counted.

        Args:
            question: one of the questions of this task.
            answer: what follows the thinking of the last turn; None if there is no answer.
        """

    def shuffle(self, seed: int) -> None:
        """Order the training questions by the run's seed. Called once, before the first is asked.

        A task without rows has nothing to do: its questions are drawn from their index.
        """
        return

    def set_aside(self, question_id: str, reason: str) -> None:
        """Take note that a training question cannot be asked.

        A run found it out, or an earlier process of it. A task that asks it again in another epoch
        may give it with its `fault` at once.
        """
        return

    def example(self, kind: str, index: int) -> Example:
        """Return example number `index` of one kind for supervised fine-tuning.

        Raises:
            KeyError: this task has no examples of that kind.
        """
        raise KeyError(f"{kind!r}: this task has no examples")


class TaskConfig(Variant):
    """Say which task a recipe wants, and with which settings: its `task` section."""

    @abstractmethod
    def load(self) -> Task:
        """Return the task.

        Raises:
            AxpoError: its data or its class does not exist.
        """

    @property
    def label(self) -> str:
        """Return how messages name this task."""
        return f"task.kind={self.name!r}"

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Make the task, ask its first question, and verify a wrong and a missing answer.

        Every command calls this before it starts any actor. A kind of task with inputs that can
        be checked more closely does so instead.

        Args:
            fits: checks that a question fits the context; None: that is not checked.

        Returns:
            What is wrong with questions that a run will set aside, a line each.

        Raises:
            AxpoError: the task cannot be used; says why.
        """
        try:
            task = self.load()
        except AxpoError:
            raise
        except Exception as error:  # the class may be the user's: anything may happen in it
            raise AxpoError(f"{self.label}: {one_line(error)}") from error
        check_methods(task, self.label)
        # A verifier that cannot take a wrong or a missing answer would fail in the first batch.
        try:
            question = question_of(task, 0)
            if question.fault:
                return [f"{self.label}: its first question: {question.fault}"]
            rewards = [float(task.verify(question, answer)) for answer in ("none", None)]
        except Exception as error:
            raise AxpoError(f"{self.label}: its first question: {one_line(error)}") from error
        if not all(map(math.isfinite, rewards)):
            raise AxpoError(f"{self.label}: verify: expected a finite number, got {rewards}")
        return self._misfits(question, fits)

    def check_images(self, folder: Path, tell: Callable[[str, int, int], None]) -> list[str]:
        """Decode every image that the task has in files.

        Args:
            folder: has the notes of an earlier check, and gets those of this one.
            tell: is told of a source how many of how many rows are done.

        Returns:
            What is wrong with questions that a run will set aside, a line each.

        Raises:
            AxpoError: too much is wrong.
        """
        return []

    def check_service(self, timeout_s: float | None = None) -> None:
        """Raise AxpoError if a service that verifies answers, a judge, does not answer itself.

        Called before a run starts.

        Args:
            timeout_s: give up after one attempt of so many seconds; None: be as patient as a run.
        """
        return

    def remarks(self, rule: ImageRule) -> list[str]:
        """Return what is doubtful about this task for a model that sees images so, a line each."""
        return []

    def _misfits(
        self, question: Question, fits: Fits | None, who: str = "its first question"
    ) -> list[str]:
        """Return why a question of the task does not fit the context, if so."""
        arrays = [image for image in question.images if isinstance(image, np.ndarray)]
        if fits is None or len(arrays) < len(question.images):
            return []
        try:
            fits(question.text, [(image.shape[1], image.shape[0]) for image in arrays])
        except ValueError as error:
            return [f"{self.label}: {who}: {error}"]
        return []


tasks: Registry[TaskConfig] = Registry("tasks", TaskConfig, "load", key="kind")


def check_methods(task: Any, label: str) -> None:
    """Raise AxpoError if an object of a user's class lacks a method of `Task`."""
    methods = ("train", "held_out", "verify", "example")
    missing = [name for name in methods if not callable(getattr(task, name, None))]
    if missing:
        names = ", ".join(missing)
        # `Task` brings `example`; without it a class must have all four.
        raise AxpoError(f"{label}: no {names}; let the class inherit from axpo.tasks.Task")


def question_of(task: Task, index: int) -> Question:
    """Return training question number `index`, with a `fault` if it cannot be asked."""
    try:
        return checked(task.train(index))
    except UnusableQuestion as error:
        return unusable(str(index), texts.one_line(str(error)))


def checked(question: Question) -> Question:
    """Return a task's question, with a `fault` if no tokenizer or image processor takes it."""
    if question.fault:
        return question
    try:
        texts.check_text([question.text, question.answer])
        for image in question.images:
            if isinstance(image, np.ndarray):
                _check_pixels(image)
    except ValueError as error:
        return unusable(question.id, f"question {question.id}: {error}")
    return question


def _check_pixels(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        found = f"{image.dtype} {list(image.shape)}"
        raise ValueError(f"expected an image of uint8 [height, width, 3], found {found}")
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"an image of {width}x{height} pixels; the limit of long to short side is {MAX_ASPECT}"
        )


def one_line(error: Exception) -> str:
    """Return an error's type and text without line breaks."""
    return texts.one_line(f"{type(error).__name__}: {error}")
