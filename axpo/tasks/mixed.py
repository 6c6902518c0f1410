"""Mix several tasks into one: each question belongs to a family, drawn by weight.

Metrics are written for each family too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from axpo.registry import Registered
from axpo.tasks.task import SYSTEM, Example, Fits, Task, TaskConfig, question_of, tasks
from rollout_workers.image_rule import ImageRule
from rollout_workers.trajectory import Question

FamilyName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")]


def _not_mixed(task: TaskConfig) -> TaskConfig:
    # `info["family"]` holds one name: the inner mixture would not find its own family by it.
    if isinstance(task, MixedConfig):
        raise PydanticCustomError("mixed", "a family cannot be a mixture itself")
    return task


class Family(BaseModel):
    """One of the tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(
        1.0, gt=0, description="share of the training questions, relative to the others"
    )
    task: Annotated[TaskConfig, Registered(), AfterValidator(_not_mixed)]


@tasks.register("mixed")
class MixedConfig(TaskConfig):
    """Several tasks by name; metrics are `eval/<name>/...` and `family/<name>/...`."""

    families: dict[FamilyName, Family] = Field(min_length=1)
    system: str | None = Field(
        SYSTEM, description="system text of all families, whatever theirs is"
    )

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Return what the checks of the families return; raise what one of them raises."""
        found: list[str] = []
        for family in self.families.values():
            found += family.task.check_inputs(fits)
        return found

    def check_images(self, folder: Path, tell: Callable[[str, int, int], None]) -> list[str]:
        """Return what the checks of the families return; raise what one of them raises."""
        found: list[str] = []
        for family in self.families.values():
            found += family.task.check_images(folder, tell)
        return found

    def check_service(self, timeout_s: float | None = None) -> None:
        """Raise what the check of a family raises."""
        for family in self.families.values():
            family.task.check_service(timeout_s)

    def remarks(self, rule: ImageRule) -> list[str]:
        """Return the remarks of the families."""
        found: list[str] = []
        for family in self.families.values():
            found += family.task.remarks(rule)
        return found

    def load(self) -> Mixed:
        """Return the task; raise what the `load` of a family raises."""
        return Mixed(self)


class Mixed(Task):
    """Ask the questions of several tasks.

    Question `index` is question `index` of its family, so each family keeps its own order and
    needs no saved state.
    """

    def __init__(self, config: MixedConfig) -> None:
        self.system = config.system
        families = config.families
        self._tasks = {name: family.task.load() for name, family in families.items()}
        self._weights = [family.weight for family in families.values()]

    def train(self, index: int) -> Question:
        """Return training question number `index`."""
        # A source for each index: the family does not depend on what was asked before.
        rng = random.Random(f"family/{index}")
        name = rng.choices(list(self._tasks), self._weights)[0]
        return _of_family(name, question_of(self._tasks[name], index))

    def held_out(self) -> list[Question]:
        """Return the questions of every family, one family after the other.

        So in the total a family counts by the number of its questions.
        """
        questions = []
        for name, task in self._tasks.items():
            questions += [_of_family(name, question) for question in task.held_out()]
        return questions

    def verify(self, question: Question, answer: str | None) -> float:
        """Return the reward that the question's family gives."""
        return self._tasks[question.info["family"]].verify(question, answer)

    def shuffle(self, seed: int) -> None:
        """Order the questions of every family; which family is asked does not depend on it."""
        for task in self._tasks.values():
            if hasattr(task, "shuffle"):
                task.shuffle(seed)

    def set_aside(self, question_id: str, reason: str) -> None:
        """Tell the question's family."""
        name, _, question = question_id.partition("/")
        task = self._tasks[name]
        if hasattr(task, "set_aside"):
            task.set_aside(question, reason)

    def example(self, kind: str, index: int) -> Example:
        """Return an example of the kind `<family>/<kind>`.

        Raises:
            KeyError: there is no such family, or it has no examples of that kind.
        """
        name, _, kind_in_family = kind.partition("/")
        question, turns, with_tools = self._tasks[name].example(kind_in_family, index)
        return Example(_of_family(name, question), turns, with_tools)


def _of_family(name: str, question: Question) -> Question:
    info = {**question.info, "family": name}
    return replace(question, id=f"{name}/{question.id}", info=info)
