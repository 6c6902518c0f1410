"""Held-out evaluation: Pass@1, Pass@4, tool use and the Thinking-Acting Gap of a policy.

The engines are already running, or are started for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from axpo.config import EvaluationConfig, Recipe, load_recipe
from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import (
    Measure,
    by_family,
    by_kind,
    evaluate_groups,
    question_counts,
)
from axpo.record.run import RunDirectory
from axpo.session import rollout_actors
from axpo.tasks import Task
from axpo.tasks.task import checked
from axpo.texts import one_line
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import (
    Group,
    ObservationSegment,
    Question,
    Segment,
    Trajectory,
    UnusableQuestion,
    stored,
)


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation found."""

    numbers: dict[str, float]
    counts: dict[str, list[list[int]]]  # those of `question_counts`
    unusable: tuple[str, ...]  # why questions could not be asked, one line each
    kept: tuple[Group, ...] = ()  # some of the scored groups, with their images


def held_out(
    pool: RolloutPool,
    task: Task,
    settings: EvaluationConfig,
    success_above: float = 0.0,
    keep: int = 0,
) -> HeldOut:
    """Ask a policy the task's held-out questions, with the same seeds every time.

    The tools of `evaluation.tools` are offered beside those of training.

    Args:
        pool: the engines of the policy.
        task: the task, for its held-out questions.
        settings: samples a question, temperature and tools.
        success_above: the recipe's `resampler.trigger.success_above`, as in training's diagnostics.
        keep: how many groups are returned whole, to be read: always of the same questions.

    Returns:
        The numbers of `evaluate_groups` and those of `question_counts`. The former also have
        `kind/<kind>/...` if the questions are of several kinds; for a mixed task `<family>/...` and
        `<family>/kind/<kind>/...` instead; `dropped`, the groups lost to infrastructure; and
        `unusable`, the questions that cannot be asked.
    """
    # What the task cannot ask, or no tokenizer takes, comes back as unusable.
    questions = [_stored_once(checked(question)) for question in task.held_out()]
    # Always as of step 0: seeds follow the step, and all evaluations must have the same ones.
    outcomes = pool.outcomes(
        questions, 0, settings.samples, temperature=settings.temperature, evaluating=True
    )
    finished: list[Group] = []
    unusable: list[UnusableQuestion] = []
    read = {question.id for question in _spread(questions, keep)}
    whole: list[Group] = []
    for outcome in outcomes:
        if isinstance(outcome, UnusableQuestion):
            unusable.append(outcome)
        else:
            if outcome.question.id in read:
                whole.append(outcome)
            # The numbers need no pixels, and those of all questions would not fit the memory.
            finished.append(_without_images(outcome))
    groups, dropped = complete(finished, questions)
    tokens = pool.ready()
    left_out = {"dropped": float(dropped), "unusable": float(len(unusable))}
    measure = partial(evaluate_groups, tokens=tokens, success_above=success_above)
    numbers = _whole_and_parts(groups, measure) | left_out
    reasons = tuple(one_line(str(error)) for error in unusable)
    kept, _ = complete(whole, questions)
    return HeldOut(numbers, question_counts(groups, tokens), reasons, tuple(kept))


def _whole_and_parts(groups: Sequence[Group], measure: Measure) -> dict[str, float]:
    """Return the numbers of all groups, and of each family and kind."""

    def measure_family(of_one: Sequence[Group]) -> dict[str, float]:
        return {**measure(of_one), **by_kind(of_one, measure)}

    # A mixed task has kinds within each family; other tasks have kinds only.
    parts = by_family(groups, measure_family) or by_kind(groups, measure)
    return {**measure(groups), **parts}


def load_target(target: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Return the recipe and the model folder to evaluate. Nothing is checked or started.

    Args:
        target: a recipe, whose model is measured, or a run directory, whose last checkpoint is.
        overrides: fields of the recipe to change, as KEY=VALUE.

    Raises:
        AxpoError: the recipe is not valid, or the run has no complete checkpoint.
    """
    if not target.is_dir():
        recipe = load_recipe(target, overrides)
        return recipe, recipe.model
    run = RunDirectory.open(target)
    latest = run.checkpoints.latest()
    if latest is None:
        raise AxpoError(f"{target}: no complete checkpoint to evaluate")
    # A run is measured with the recipe it was started with.
    recipe = load_recipe(run.path / "recipe.yaml", overrides)
    return recipe, str(latest.folder / "hf")


def evaluate_model(recipe: Recipe, model: str) -> HeldOut:
    """Return what the held-out questions say about a model folder, on engines started for it.

    A Ray session must be open.
    """
    task = recipe.task.load()
    with rollout_actors(recipe, task, model) as (pool, _):
        success_above = recipe.resampler.trigger.success_above
        return held_out(pool, task, recipe.evaluation, success_above)


def complete(finished: Iterable[Group], questions: Sequence[Question]) -> tuple[list[Group], int]:
    """Sort groups into the order of their questions and drop those that are not scored.

    A rollout that infrastructure cut short was run again by its worker. If that failed too, its
    group is dropped entirely: it is never filled up, and never scored as the model's mistake.

    Returns:
        The groups in which every rollout has a reward, and the number of the others.
    """
    order = {question.id: index for index, question in enumerate(questions)}
    # Groups come in as they finish.
    groups = sorted(finished, key=lambda group: order[group.question.id])
    scored = [group for group in groups if _is_scored(group)]
    return scored, len(groups) - len(scored)


def _spread(questions: Sequence[Question], count: int) -> list[Question]:
    """Return some of the questions, evenly over all of them: a mixed task has parts."""
    count = min(count, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def _is_scored(group: Group) -> bool:
    return all(rollout.reward is not None for rollout in group.rollouts)


def _stored_once(question: Question) -> Question:
    """Return the question with its pixels in the object store once, not once with each rollout.

    Lazy images stay so: the pool reads them when it is their turn.
    """
    return question if question.is_lazy else stored(question)


def _without_images(group: Group) -> Group:
    question = replace(group.question, images=())
    rollouts = tuple(_without_pixels(rollout) for rollout in group.rollouts)
    return replace(group, question=question, rollouts=rollouts)


def _without_pixels(rollout: Trajectory) -> Trajectory:
    segments: list[Segment] = []
    for segment in rollout.segments:
        is_observation = isinstance(segment, ObservationSegment)
        segments.append(ObservationSegment(segment.token_ids) if is_observation else segment)
    return replace(rollout, segments=tuple(segments))
