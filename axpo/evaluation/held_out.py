"""Held-out evaluation: Pass@1, Pass@4, tool use and the Thinking-Acting Gap of a policy, on engines already running or started for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from axpo.config import EvaluationConfig, Recipe, load_recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import by_family, by_kind, evaluate_groups, question_counts
from axpo.record.run import RunDirectory
from axpo.tasks import Task, load_task
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import Group, Question, stored


def held_out(
    pool: RolloutPool, task: Task, settings: EvaluationConfig, success_above: float = 0.0
) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    """`axpo.training.metrics.evaluate_groups` and `question_counts` over the task's held-out questions, with the same seeds every time.

    `evaluation.tools` are offered beside those of training. The numbers also have `kind/<kind>/...` where questions are of several
    kinds, of a mixed task `<family>/...` and `<family>/kind/<kind>/...`, and `dropped`: groups lost to infrastructure.
    """
    questions = [stored(question) for question in task.held_out()]
    finished = pool.rollout(
        questions, 0, settings.samples, temperature=settings.temperature, evaluating=True
    )
    groups, dropped = complete(finished, questions)
    tokens = pool.ready()
    measure = partial(evaluate_groups, tokens=tokens, success_above=success_above)
    families = by_family(groups, lambda of_one: measure(of_one) | by_kind(of_one, measure))
    numbers = measure(groups) | (families or by_kind(groups, measure)) | {"dropped": float(dropped)}
    return numbers, question_counts(groups, tokens)


def load_target(target: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """What is measured: a recipe and its model, or a run's recipe and the model of its last checkpoint. Nothing is started.

    Raises AxpoError where the recipe is bad, its inputs are not there, or the run has no complete checkpoint.
    """
    if not target.is_dir():
        recipe = load_recipe(target, overrides)
        recipe.check_inputs()
        return recipe, recipe.model
    run = RunDirectory.open(target)
    latest = run.checkpoints.latest()
    if latest is None:
        raise AxpoError(f"{target}: no complete checkpoint to evaluate")
    recipe = parse_recipe(run.recipe(), overrides, str(run.path / "recipe.yaml"))
    recipe.check_inputs()
    return recipe, str(latest.folder / "hf")


def evaluate_model(recipe: Recipe, model: str) -> dict[str, float]:
    """Held-out numbers of a model folder, on engines started for it. Needs a Ray session."""
    from axpo.session import rollout_actors

    task = load_task(recipe.task)
    with rollout_actors(recipe, task, model) as (pool, _):
        return held_out(pool, task, recipe.evaluation)[0]


def complete(finished: Iterator[Group], questions: Sequence[Question]) -> tuple[list[Group], int]:
    """The groups in the order of their questions, without those in which a rollout has no reward, and how many those were.

    A rollout that infrastructure cut short was re-run by its worker; if that failed too its group is dropped whole: never
    padded, never scored as the model's mistake.
    """
    order = {question.id: index for index, question in enumerate(questions)}
    groups = sorted(finished, key=lambda group: order[group.question.id])
    kept = [group for group in groups if all(t.reward is not None for t in group.rollouts)]
    return kept, len(groups) - len(kept)
