"""Each half of training alone.

`record` makes rollouts without a learner and writes them exactly. `replay` trains a learner on what
was written, without an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axpo.config import Recipe
from axpo.evaluation.diagnostics import diagnostics
from axpo.record.records import Decode
from axpo.record.run import RunDirectory
from axpo.training.flow import Flow
from axpo.training.metrics import rollout_metrics, tool_metrics
from axpo.training.progress import Progress
from learner.credit import credit
from learner.learner import Learner
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import Group, ObservationSegment, SpecialTokens, Trajectory
from tool_server.pool import ToolPool


@dataclass(frozen=True)
class Recording:
    """What a run of rollouts alone consists of."""

    recipe: Recipe
    pool: RolloutPool
    tools: ToolPool
    flow: Flow
    directory: RunDirectory
    progress: Progress
    decode: Decode


@dataclass(frozen=True)
class Replaying:
    """What a run of the learner alone consists of."""

    recipe: Recipe
    learner: Learner
    tokens: SpecialTokens
    directory: RunDirectory
    progress: Progress


def record(run: Recording) -> None:
    """Write every step's groups, with their forks, into the run directory. Nothing is trained.

    They are by the policy that the engines loaded.
    """
    tokens = run.pool.ready()
    recipe, directory = run.recipe, run.directory
    for step in range(recipe.steps):
        done = step + 1
        with run.progress.phase("rollout"):
            run.flow.feed(step)
            batch = run.flow.take(step)
        times = run.progress.timer.take()
        # Nothing is trained, so all the time between two batches is the rollouts'.
        numbers = _diagnose(recipe, batch.finished, tokens)
        numbers |= rollout_metrics(batch.finished, batch.resampled, times["time/rollout"])
        numbers |= run.pool.take_stats()
        tools = tool_metrics(run.tools.take_stats())
        directory.log_metrics(done, numbers | times | tools)
        run.progress.set_aside("question", batch.unusable)
        directory.save_rollouts(done, batch.groups, run.decode)
        directory.save_groups(done, batch.groups, run.decode, limit=recipe.logging.groups_kept)
        directory.save_timeline(done, batch.finished, batch.resampled)
        run.progress.step(done, directory.metrics()[-1])


def replay(run: Replaying, source: RunDirectory) -> int:
    """Train on the groups that `record` wrote, step by step, and save the last checkpoint.

    Args:
        run: what is trained.
        source: the run directory that `record` wrote.

    Returns:
        The number of steps made.
    """
    done = 0
    noted = 0
    for done, recorded in source.rollouts():
        groups, strange = _of_this_model(recorded, run.tokens)
        run.progress.set_aside("record", source.unreadable[noted:] + strange)
        noted = len(source.unreadable)
        with run.progress.phase("learn"):
            items = credit(groups, run.tokens, run.recipe.learner)
            update = run.learner.update(items) if items else {}
        numbers = update | _diagnose(run.recipe, groups, run.tokens)
        run.directory.log_metrics(done, numbers | run.progress.timer.take())
        run.progress.step(done, run.directory.metrics()[-1])
    if done:
        run.learner.save(str(run.directory.checkpoints.path(done)))
    return done


def _of_this_model(groups: Sequence[Group], tokens: SpecialTokens) -> tuple[list[Group], list[str]]:
    """Return the groups that the model can compute, and why the others are left out."""
    fitting, strange = [], []
    for group in groups:
        trajectories = list(group.rollouts)
        for resample in group.resamples:
            trajectories += resample.continuations
        faults = [_fault(trajectory, group, tokens) for trajectory in trajectories]
        fault = next((fault for fault in faults if fault), None)
        if fault is None:
            fitting.append(group)
        else:
            strange.append(f"question {group.question.id}: {fault}")
    return fitting, strange


def _fault(trajectory: Trajectory, group: Group, tokens: SpecialTokens) -> str | None:
    """Return why a model cannot compute a trajectory; None if it can."""
    vocabulary = tokens.unused[1]
    parts = [(trajectory.prompt_ids, len(group.question.images))]
    for segment in trajectory.segments:
        shown = segment.images if isinstance(segment, ObservationSegment) else ()
        parts.append((segment.token_ids, len(shown)))
    for ids, images in parts:
        if vocabulary and ids.size and int(ids.max()) >= vocabulary:
            return f"token {int(ids.max())}, the model has {vocabulary}"
        if int((ids == tokens.image_pad).sum()) != images:
            return "another number of images than of their tokens"
    return None


def _diagnose(recipe: Recipe, groups: list[Group], tokens: SpecialTokens) -> dict[str, float]:
    return diagnostics(groups, tokens, recipe.resampler.trigger.success_above)
