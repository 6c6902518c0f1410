"""Held-out numbers of a start model that somebody has measured already: a file beside the model.

`axpo model measure RECIPE` measures the recipe's model and writes `held_out.json` into its folder.
A run of that recipe then takes its start numbers from there. It takes them only if everything that
they depend on is equal: the model's files, the questions, and the settings of `conditions`.
`evaluation.start: measure` measures in any case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from axpo.config import Recipe, looks_local
from axpo.errors import AxpoError
from axpo.evaluation.held_out import HeldOut
from axpo.model_folder.proven import FILE, model_hash
from axpo.record.files import read_text, replace_file
from axpo.tasks import Task
from rollout_workers.trajectory import Question

_OF_ROLLOUT = {
    *("max_turns", "max_turn_tokens", "max_context_tokens", "max_tool_tokens"),
    "max_calls_per_turn",
}
_OF_ENGINE = {"dtype", "options"}
_OF_EVALUATION = {"samples", "temperature", "tools"}


class Measured(BaseModel):
    """What one evaluation found, and under which conditions."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    model: str
    """`model_hash` of the folder."""
    conditions: dict[str, Any]
    numbers: dict[str, float]
    counts: dict[str, list[list[int]]]
    """Those of `axpo.evaluation.diagnostics.question_counts`."""


_ENTRIES = TypeAdapter(tuple[Measured, ...])


def known_numbers(recipe: Recipe, task: Task) -> Measured | None:
    """Return the start model's numbers if they were measured under exactly these conditions.

    Args:
        recipe: the run's recipe.
        task: the recipe's task.

    Raises:
        AxpoError: the file beside the model cannot be read.
    """
    file = Path(recipe.model) / FILE
    if not looks_local(recipe.model) or not file.is_file():
        return None
    entries = _read(file)
    asked = conditions(recipe, task)
    found = next((entry for entry in entries if entry.conditions == asked), None)
    # A large model takes a while to hash, so this comes last.
    if found is None or found.model != model_hash(file.parent):
        return None
    return found


def write_known(recipe: Recipe, task: Task, found: HeldOut) -> Path:
    """Write what an evaluation found beside the recipe's model.

    It takes the place of what was measured there under the same conditions, or of other files.

    Raises:
        AxpoError: the model is no folder, or not every question could be asked and scored.
    """
    if not looks_local(recipe.model):
        raise AxpoError(f"model={recipe.model!r}: expected a folder, to write {FILE} into")
    if found.unusable or found.numbers["dropped"]:
        raise AxpoError(
            f"{found.numbers['dropped']:.0f} questions were dropped and {len(found.unusable)} were "
            "set aside: expected every held-out question to be scored"
        )
    file = Path(recipe.model) / FILE
    own = Measured(
        model=model_hash(file.parent),
        conditions=conditions(recipe, task),
        numbers=found.numbers,
        counts=found.counts,
    )
    before = _read(file) if file.is_file() else ()
    others = [
        entry for entry in before if entry.model == own.model and entry.conditions != own.conditions
    ]
    replace_file(file, _ENTRIES.dump_json((*others, own)).decode() + "\n")
    return file


def conditions(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return what held-out numbers depend on beside the model's files, as plain data."""
    resolved = recipe.model_dump(mode="json")
    rollout = resolved["rollout"]
    return {
        "seed": recipe.seed,
        "task": resolved["task"],
        "questions": _digest(task.held_out()),
        "tools": resolved["tools"],
        "images": resolved["images"],
        "evaluation": _chosen(resolved["evaluation"], _OF_EVALUATION),
        "rollout": _chosen(rollout, _OF_ROLLOUT),
        "engine": _chosen(rollout["engine"], _OF_ENGINE),
        "success_above": recipe.resampler.trigger.success_above,
    }


def _chosen(section: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: section[name] for name in sorted(names)}


def _digest(questions: Iterable[Question]) -> str:
    """Return a hash of what questions ask and expect. Their pictures follow from the task."""
    of_questions = hashlib.sha256()
    for question in questions:
        told = [question.id, question.text, question.answer]
        of_questions.update(json.dumps(told).encode())
    return of_questions.hexdigest()


def _read(file: Path) -> tuple[Measured, ...]:
    try:
        return _ENTRIES.validate_json(read_text(file))
    except (ValueError, RecursionError):
        raise AxpoError(
            f"{file}: expected what `axpo model measure` writes; write it again, or remove it"
        ) from None
