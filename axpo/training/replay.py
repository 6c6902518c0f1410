"""Each half of training alone: rollouts without a learner, written exactly, and a learner that trains on what was written."""

from __future__ import annotations

from typing import Any

from axpo.config import Recipe
from axpo.evaluation.diagnostics import diagnostics
from axpo.record.run import RunDirectory
from axpo.training.flow import Flow
from axpo.training.metrics import rollout_metrics, tool_metrics
from axpo.training.progress import Progress
from learner.credit import credit
from learner.learner import Learner
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import SpecialTokens
from tool_server.pool import ToolPool


def record(
    recipe: Recipe,
    pool: RolloutPool,
    tools: ToolPool,
    flow: Flow,
    run: RunDirectory,
    progress: Progress,
    decode: Any,
) -> None:
    """Every step's groups by the policy that the engines loaded, with their forks, into the run directory. Nothing is trained."""
    tokens = pool.ready()
    for step in range(recipe.steps):
        with progress.phase("rollout"):
            flow.feed(step)
            batch = flow.take(step)
        times = progress.timer.take()
        numbers = (
            diagnostics(batch.finished, tokens, recipe.resampler.trigger.success_above)
            | rollout_metrics(batch.finished, times["time/rollout"])
            | pool.take_stats()
        )
        run.log_metrics(step + 1, numbers | times | tool_metrics(tools.take_stats()))
        run.save_rollouts(step + 1, batch.groups, decode)
        run.save_groups(step + 1, batch.groups, decode, limit=recipe.logging.groups_kept)
        run.save_timeline(step + 1, batch.finished)
        progress.step(step + 1, run.metrics()[-1])


def replay(
    recipe: Recipe,
    source: RunDirectory,
    learner: Learner,
    tokens: SpecialTokens,
    run: RunDirectory,
    progress: Progress,
) -> int:
    """Train on the groups that `record` wrote, step by step, and save the last checkpoint. No engine; returns the steps made."""
    done = 0
    for done, groups in source.rollouts():
        with progress.phase("learn"):
            items = credit(groups, tokens, recipe.learner.baseline, recipe.learner.credit)
            update = learner.update(items) if items else {}
        run.log_metrics(
            done,
            update
            | diagnostics(groups, tokens, recipe.resampler.trigger.success_above)
            | progress.timer.take(),
        )
        progress.step(done, run.metrics()[-1])
    if done:
        learner.save(str(run.checkpoints.path(done)))
    return done
