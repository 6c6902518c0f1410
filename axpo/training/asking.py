"""Ask questions: in the task's order, in batches that share a resampling budget."""

from __future__ import annotations

from dataclasses import replace

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.tasks import Task
from axpo.tasks.task import question_of
from axpo.training.cursor import Cursor, Kept
from axpo.training.following import Following
from axpo.training.in_flight import Batch, CarriedForks, QuestionInFlight, prefix_of
from rollout_workers.fleet import Log
from rollout_workers.trajectory import Question, stored

NOT_MADE = Question(id="", text="", images=(), answer="")
"""Stands for a question of a batch until it is made."""


MOST_PASSED_OVER = 10_000
"""Questions in a row that cannot be asked. A task with so many has none that can, most likely."""


class Asking:
    """Decide which question is asked next, and in which batch. For the trainer's thread.

    A question with a fault is passed over: the next one takes its place.
    """

    def __init__(self, recipe: Recipe, task: Task, following: Following, log: Log) -> None:
        self._task = task
        self._together = recipe.asked_together
        self._wanted = recipe.questions_per_step
        self._following = following
        self._log = log
        self.pending: list[int] = []  # questions to ask again, before any new one
        self.next_index = 0  # of the next new question, in the task's order
        self.next_batch = 0
        self.set_aside: dict[str, str] = {}  # why questions cannot be asked, by their ids
        self._told: set[str] = set()
        self._passed_over: list[str] = []  # reasons that are new since `take_passed_over`

    def resume(self, cursor: Cursor) -> list[QuestionInFlight]:
        """Go on from a checkpoint; return the questions whose groups it kept."""
        self.pending = list(cursor.pending)
        self.next_index = cursor.following
        self.next_batch = cursor.batch
        for question, reason in cursor.set_aside.items():
            self.remember(question, reason)
        restored = [self.restored(kept) for kept in cursor.kept]
        for asked in restored:
            self._log(
                "dispatched",
                question=asked.question.id,
                index=asked.index,
                version=asked.version,
                restored=True,
            )
        return restored

    def remember(self, question: str, reason: str) -> None:
        """Take note that a question cannot be asked; the task may know it in another epoch."""
        self.set_aside[question] = reason
        self._told.add(reason)
        # A task that inherits nothing may lack it.
        if hasattr(self._task, "set_aside"):
            self._task.set_aside(question, reason)

    def take_passed_over(self) -> list[str]:
        """Return why questions were passed over since the last call, each reason once in a run."""
        taken, self._passed_over = self._passed_over, []
        return taken

    def ask(self, count: int, version: int) -> list[QuestionInFlight]:
        """Start `count` questions, begun by policy `version`, in batches of at most one step."""
        # An asynchronous run asks the questions of several steps at once. A budget is always for
        # the questions of one step.
        indices = [self._take_index() for _ in range(count)]
        asked: list[QuestionInFlight] = []
        for start in range(0, len(indices), self._together):
            asked += self._ask_batch(indices[start : start + self._together], version)
        return asked

    def _ask_batch(self, indices: list[int], version: int) -> list[QuestionInFlight]:
        # The whole batch before any of it starts: a decision may be about any of its places.
        number = self.next_batch
        self.next_batch += 1
        questions = [QuestionInFlight(index, NOT_MADE, version, number) for index in indices]
        batch = Batch(number, questions, min(self._wanted, len(questions)))
        for place, asked in enumerate(questions):
            # Each question starts before the next one is made: the engines work while the task
            # draws or decodes. Lazy images are read by the pool.
            asked.index, asked.question = self._next_sound(asked.index)
            self._log(
                "dispatched",
                question=asked.question.id,
                index=asked.index,
                batch=batch.number,
                version=version,
            )
            asked.result = self._following.start(batch, place)
        return questions

    def _next_sound(self, index: int) -> tuple[int, Question]:
        """Return the question of an index, or the next one that can be asked, with its index."""
        for _ in range(MOST_PASSED_OVER):
            question = question_of(self._task, index)
            if not question.fault:
                return index, question if question.is_lazy else stored(question)
            self._pass_over(question)
            index = self._take_index()
        raise AxpoError(
            f"{MOST_PASSED_OVER:,} questions in a row cannot be asked; the last one: "
            f"{question.fault}"
        )

    def _pass_over(self, question: Question) -> None:
        # A row that comes again in another epoch is told once.
        if question.fault in self._told:
            return
        self._told.add(question.fault)
        self.set_aside[question.id] = question.fault
        self._passed_over.append(question.fault)
        self._log("unusable", question=question.id, reason=question.fault)

    def _take_index(self) -> int:
        if self.pending:
            return self.pending.pop(0)
        self.next_index += 1
        return self.next_index - 1

    def restored(self, kept: Kept) -> QuestionInFlight:
        """Return a question whose group a checkpoint kept; forks that it lacks are made again."""
        # The record of a group has no `info`, which the metrics of families read.
        info = question_of(self._task, kept.index).info
        question = replace(kept.group.question, info=info)
        asked = QuestionInFlight(kept.index, question, kept.version, kept.batch, has_rollouts=True)
        group = replace(kept.group, question=question)
        if not group.carried:
            asked.result.set_result(group)
            return asked
        asked.result.set_result(replace(group, resamples=()))
        back = {prefix_of(resample): resample for resample in group.resamples}
        self._following.go_on(asked, CarriedForks((*back, *kept.under_way), outcomes=dict(back)))
        return asked
