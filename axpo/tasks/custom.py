"""A task that is a class of the user's."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from axpo.errors import AxpoError
from axpo.registry import find
from axpo.tasks.task import Task

METHODS = ("train", "held_out", "verify", "example")


class CustomConfig(BaseModel):
    """A class that inherits from `axpo.tasks.Task`, imported with the working directory on the path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["custom"] = "custom"
    path: str = Field(description="the class, as package.module:Name")
    options: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments")

    def load(self) -> Task:
        """The task. Raises AxpoError where it cannot be imported or made, or lacks a method."""
        where = f"task.path={self.path!r}"
        try:
            task = find(self.path)(**self.options)
        except Exception as error:  # the class is the user's: anything may happen in it
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise AxpoError(f"{where}: {kind}{' '.join(str(error).split())}") from error
        if missing := [name for name in METHODS if not callable(getattr(task, name, None))]:
            raise AxpoError(
                f"{where}: no {', '.join(missing)}; let the class inherit from axpo.tasks.Task"
            )
        return task

    def check_inputs(self) -> None:
        """Make the task, ask the first question, and verify a wrong and a missing answer. Raises AxpoError."""
        task = self.load()
        try:
            question = task.train(0)
            rewards = [float(task.verify(question, answer)) for answer in ("none", None)]
        except Exception as error:
            raise AxpoError(
                f"task.path={self.path!r}: its first question: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not all(map(math.isfinite, rewards)):
            raise AxpoError(
                f"task.path={self.path!r}: verify: expected a finite number, got {rewards}"
            )
