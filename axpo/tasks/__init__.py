"""Tasks: where questions come from, how an answer is verified, and what a teacher would have done.

A task is a small class with the methods of `Task`; its configuration is one entry of the recipe's `task` section.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from axpo.tasks.mixed import FamilyTask, MixedConfig
from axpo.tasks.task import Task, Turns

TaskConfig: TypeAlias = Annotated[FamilyTask | MixedConfig, Field(discriminator="kind")]

__all__ = ["Task", "TaskConfig", "Turns", "load_task"]


def load_task(config: TaskConfig) -> Task:
    """The task of a recipe's `task` section. Raises AxpoError where its data or its class is not there."""
    return config.load()
