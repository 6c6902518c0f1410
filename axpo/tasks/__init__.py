"""Tasks: where questions come from, how an answer is verified, and what a teacher would have done.

A task is a small class with the methods of `Task`. Its configuration is the recipe's `task`
section; each kind is registered where it is defined.

Rows of a user's own go through `data.py` (where they are), `lines.py` and `tables.py` (how they are
read), `selection.py` and `left_out.py` (which are asked), `rows.py` and `cells.py` (what they mean,
and what is wrong with one) and `row_check.py` (before a run).

May import `axpo.registry`, `axpo.errors`, `axpo.texts`, `rollout_workers.trajectory` and
`tool_server` (images and search results). Start reading in `task.py`.
"""

from __future__ import annotations

# Importing a module registers its kind of task, of judge or of verifier.
from axpo.tasks import custom, dataset, judge_endpoint, mixed  # noqa: F401
from axpo.tasks.embedded import small_digit, small_fact, small_product  # noqa: F401
from axpo.tasks.task import Example, Task, TaskConfig, Turns

__all__ = ["Example", "Task", "TaskConfig", "Turns"]
