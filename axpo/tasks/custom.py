"""Use a class of the user's as the task."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from axpo.errors import AxpoError
from axpo.registry import find
from axpo.tasks.task import Task, TaskConfig, check_methods, one_line, tasks


@tasks.register("custom")
class CustomConfig(TaskConfig):
    """A class that inherits from `axpo.tasks.Task`, found in the working directory too."""

    path: str = Field(description="the class, as package.module:Name")
    options: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments")

    @property
    def label(self) -> str:
        """Return how messages name this task."""
        return f"task.path={self.path!r}"

    def load(self) -> Task:
        """Return the task.

        Raises:
            AxpoError: the class cannot be imported or made, or it lacks a method.
        """
        try:
            task: Task = find(self.path)(**self.options)
        except ValueError as error:
            # It says in words what is wrong; the name of its type would add nothing.
            message = " ".join(str(error).split())
            raise AxpoError(f"{self.label}: {message}") from error
        except Exception as error:  # the class is the user's: anything may happen in it
            raise AxpoError(f"{self.label}: {one_line(error)}") from error
        check_methods(task, self.label)
        return task
