"""Several tasks as one: each question is of a family, drawn by weight, and the metrics are told by family too."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from axpo.tasks.custom import CustomConfig
from axpo.tasks.dataset import DatasetConfig
from axpo.tasks.embedded.small_digit import SmallDigitConfig
from axpo.tasks.embedded.small_fact import SmallFactConfig
from axpo.tasks.embedded.small_product import SmallProductConfig
from axpo.tasks.task import SYSTEM, Task, Turns
from rollout_workers.trajectory import Question

FamilyTask = Annotated[
    SmallDigitConfig | SmallProductConfig | SmallFactConfig | DatasetConfig | CustomConfig,
    Field(discriminator="kind"),
]


class Family(BaseModel):
    """One of the tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(
        1.0, gt=0, description="share of the training questions, relative to the others"
    )
    task: FamilyTask


class MixedConfig(BaseModel):
    """Families by name; metrics are `eval/<name>/...` and `family/<name>/...`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mixed"] = "mixed"
    families: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")], Family] = (
        Field(min_length=1)
    )
    system: str | None = Field(
        SYSTEM, description="system text of all families, whatever theirs is"
    )

    def check_inputs(self) -> None:
        """Raises what a family's own check raises."""
        for family in self.families.values():
            family.task.check_inputs()

    def load(self) -> Mixed:
        """The task. Raises what a family's own `load` raises."""
        return Mixed(self)


class Mixed(Task):
    """Question `index` is its family's own question `index`, so that each family keeps its order and needs no state."""

    def __init__(self, config: MixedConfig) -> None:
        self.system = config.system
        self._tasks = {name: family.task.load() for name, family in config.families.items()}
        self._weights = [family.weight for family in config.families.values()]

    def train(self, index: int) -> Question:
        name = random.Random(f"family/{index}").choices(list(self._tasks), self._weights)[0]
        return _of(name, self._tasks[name].train(index))

    def held_out(self) -> list[Question]:
        """Every family's, one after the other: in the total each counts by their number."""
        return [
            _of(name, question)
            for name, task in self._tasks.items()
            for question in task.held_out()
        ]

    def verify(self, question: Question, answer: str | None) -> float:
        return self._tasks[question.info["family"]].verify(question, answer)

    def example(self, kind: str, index: int) -> tuple[Question, Turns, bool]:
        """`<family>/<kind>`. Raises KeyError for another one."""
        name, _, own = kind.partition("/")
        question, turns, tools = self._tasks[name].example(own, index)
        return _of(name, question), turns, tools


def _of(name: str, question: Question) -> Question:
    return replace(question, id=f"{name}/{question.id}", info={**question.info, "family": name})
