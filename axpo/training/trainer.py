"""The training loop, as in the paper: questions become groups, groups become forks, outcomes become advantages, advantages
become an update, the update becomes the next policy."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import by_family, diagnostics
from axpo.evaluation.held_out import held_out
from axpo.record.run import RunDirectory
from axpo.record.summary import write_summary
from axpo.tasks import Task
from axpo.training.actors import Actors
from axpo.training.cursor import Cursor
from axpo.training.flow import Flow, Taken
from axpo.training.metrics import rollout_metrics, shaping_metrics, tool_metrics
from axpo.training.progress import Progress
from axpo.training.stop import StopRequest
from learner.credit import TrainItem, credit
from rollout_workers.fleet import WorkersFailed


class Phases(Protocol):
    def phase(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Step:
    """What one step produced."""

    batch: Taken
    items: list[TrainItem]
    update: dict[str, float]


def train_step(recipe: Recipe, actors: Actors, flow: Flow, step: int, progress: Phases) -> Step:
    """Policy version `step` in, version `step + 1` in the learner and on every engine out."""
    with progress.phase("rollout"):
        flow.feed(
            step
        )  # questions become rollouts; as groups finish, the resampler forks those that triggered
        batch = flow.take(step)
    with progress.phase("learn"):
        items = credit(batch.groups, actors.tokens, recipe.learner.baseline, recipe.learner.credit)
        update = actors.policy.update(items)
    with progress.phase("sync"):
        actors.policy.publish()
    return Step(batch, items, update)


def train(
    recipe: Recipe,
    task: Task,
    actors: Actors,
    flow: Flow,
    run: RunDirectory,
    progress: Progress,
    decode: Any,
    first: int = 0,
) -> dict[str, Any] | None:
    """Steps `first` .. `recipe.steps`, then the summary (also written to the run directory).

    With `first` > 0 the learner must hold the checkpoint of that step and the flow its cursor. SIGTERM ends the run after the
    step in progress, with a checkpoint and without a summary (None). Raises AxpoError where too many rollout workers were lost
    (the run can then be resumed from a checkpoint of the last whole step) or `learner.max_skipped` updates in a row were not finite.
    """
    stop = StopRequest()
    with progress.phase("sync"):
        actors.policy.publish(first)
    if first == 0:
        if recipe.evaluation.start:
            evaluation(recipe, task, actors, run, progress, 0)
        run.log_metrics(0, progress.timer.take())
    for step in range(first, recipe.steps):
        cursor = flow.cursor
        try:
            result = train_step(recipe, actors, flow, step, progress)
        except WorkersFailed as error:
            actors.learner.finish_save()
            if actors.policy.version == step > first:
                checkpoint(actors, cursor, run, progress, step)
            raise AxpoError(
                f"step {step + 1}: {error}. Continue with --resume {run.path}"
            ) from error
        done = step + 1
        times = progress.timer.take()
        run.log_metrics(
            done,
            measurements(recipe, result, actors, times) | tool_metrics(actors.tools.take_stats()),
        )
        run.save_groups(done, result.batch.groups, decode, result.items, recipe.logging.groups_kept)
        run.save_timeline(done, result.batch.finished)
        if result.batch.dropped:
            run.log_event("groups dropped", step=done, count=result.batch.dropped)
        last = done == recipe.steps
        if last or (recipe.evaluation.every and done % recipe.evaluation.every == 0):
            evaluation(recipe, task, actors, run, progress, done)
        broken = result.update.get("skipped_in_a_row", 0) >= recipe.learner.max_skipped
        stopped = stop.requested
        ending = last or stopped or broken
        if ending or done % recipe.checkpoint_every == 0:
            checkpoint(
                actors, flow.cursor, run, progress, done, wait=ending or not recipe.checkpoint_async
            )
            run.prune_checkpoints(recipe.keep_checkpoints)
        run.log_metrics(done, progress.timer.take())
        progress.step(done, run.metrics()[-1])
        if broken:
            raise AxpoError(
                f"{recipe.learner.max_skipped} updates in a row were not finite: stopped after step {done}, with a checkpoint"
            )
        if stopped and not last:
            run.log_event("stopped", step=done)
            return None
    return summarize(run)


def checkpoint(
    actors: Actors,
    cursor: Cursor,
    run: RunDirectory,
    progress: Phases,
    done: int,
    wait: bool = True,
) -> None:
    """The learner's state after `done` steps, and with it where the questions then stand. Without `wait` it appears later."""
    with progress.phase("checkpoint"):
        actors.learner.finish_save()
        if run.checkpoints.path(done).exists():
            return
        run.log_event("checkpoint", step=done)
        actors.learner.save(str(run.checkpoints.path(done)), add=cursor.save, wait=wait)


def evaluation(
    recipe: Recipe, task: Task, actors: Actors, run: RunDirectory, progress: Phases, done: int
) -> None:
    """Writes held-out numbers of the engines' policy after `done` steps, as `eval/...`, and of the tools it called, as `eval_tool/...`."""
    with progress.phase("evaluate"):
        numbers, counts = held_out(actors.pool, task, recipe.evaluation)
    actors.pool.take_stats()
    run.log_held_out(done, counts)
    run.log_metrics(
        done,
        {f"eval/{name}": value for name, value in numbers.items()}
        | tool_metrics(actors.tools.take_stats(), "eval_tool"),
    )


def measurements(
    recipe: Recipe, result: Step, actors: Actors, times: dict[str, float]
) -> dict[str, float]:
    """A step's line of metrics: the paper's diagnostics, the update's numbers, seconds by phase, what generation cost."""
    batch = result.batch
    seconds = sum(times.get(f"time/{phase}", 0.0) for phase in ("rollout", "learn", "sync"))
    ages = Counter(batch.staleness.values())
    told = partial(diagnostics, tokens=actors.tokens, success_above=recipe.resampler.success_above)
    return {
        **result.update,
        **told(batch.finished),
        **{f"family/{name}": value for name, value in by_family(batch.finished, told).items()},
        **shaping_metrics(batch.finished, actors.tokens, recipe.learner.credit.tool_bonus),
        **rollout_metrics(batch.finished, seconds),
        **actors.pool.take_stats(),
        **times,
        **{f"staleness/{age}": float(count) for age, count in sorted(ages.items())},
        "groups_dropped": float(batch.dropped),
        "groups_stale": float(batch.stale),
        "groups_uninformative": float(len(batch.uninformative)),
        "forks_dropped": float(batch.forks_dropped),
        "forks_collapsed": float(batch.forks_collapsed),
        "verifier_failures": float(batch.verifier_failures),
    }


def summarize(run: RunDirectory) -> dict[str, Any]:
    """Held-out numbers before and after, and what it cost, from the run's own metrics (so a resumed run counts whole)."""
    rows = run.metrics()
    start, end = rows[0], rows[-1]
    names = [
        name.removeprefix("eval/")
        for name in end
        if name.startswith("eval/") and name != "eval/dropped"
    ]
    numbers: dict[str, Any] = {
        f"{name}_{when}": row.get(f"eval/{name}")
        for name in names
        for when, row in (("start", start), ("end", end))
    }
    seconds = sum(
        value for row in rows for name, value in row.items() if name.startswith("time/") and value
    )
    tokens = int(sum(row.get("generated_tokens") or 0 for row in rows))
    cost = {"steps": end["step"], "seconds": round(seconds, 1), "tokens": tokens}
    return write_summary(run.path, numbers | cost)
