"""Tasks: where questions come from, how an answer is verified, and what a teacher would have done.

A task is a small class with the methods of `Task`; its configuration is one entry of the recipe's `task` section.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field

from axpo.tasks.custom import CustomConfig
from axpo.tasks.dataset import DatasetConfig, DatasetTask
from axpo.tasks.small_digit import SmallDigit, SmallDigitConfig
from axpo.tasks.task import Task, Turns

TaskConfig: TypeAlias = Annotated[SmallDigitConfig | DatasetConfig | CustomConfig, Field(discriminator="kind")]

__all__ = ["Task", "TaskConfig", "Turns", "load_task"]


def load_task(config: Any) -> Task:
    """The task of a recipe's `task` section. Raises AxpoError where its data or its class is not there."""
    if isinstance(config, CustomConfig):
        return config.load()
    return SmallDigit(config) if isinstance(config, SmallDigitConfig) else DatasetTask(config)
