"""A whole run, from its recipe to its end: training, rollouts alone, or the learner alone.

Each function starts the actors, goes on from a checkpoint if there is one, and ends all it started.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from ray.exceptions import RayError
from rich.console import Console

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.placement import Parts, Plan
from axpo.record.ledger import Ledger
from axpo.record.meta import add_to_meta
from axpo.record.records import Decode
from axpo.record.run import RunDirectory
from axpo.session import learner_ranks, local_path, places, ray_session, rollout_actors
from axpo.spans import process_start, span
from axpo.training import start_timeline
from axpo.training.actors import Actors, training_actors
from axpo.training.cursor import Cursor, load_cursor
from axpo.training.flow import Flow
from axpo.training.gauges import Gauges
from axpo.training.progress import Progress
from axpo.training.replay import Recording, Replaying, record, replay
from axpo.training.telling import Telling, both
from axpo.training.trainer import TrainingRun, train
from axpo.training.watching import ranks_watched
from learner.learner import RanksLost
from resampler.resampler import start_resampler
from resampler.schedules import Batch
from rollout_workers.causes import ActorsLost, cause_of
from rollout_workers.chat import Chat
from rollout_workers.garbage import few_collections


def train_run(
    recipe: Recipe, directory: RunDirectory, first: int, console: Console
) -> dict[str, Any] | None:
    """Train from step `first` on.

    If the learner's ranks are lost, all actors are started again and the run goes on from its last
    checkpoint, once for each checkpoint.

    Args:
        recipe: the run's recipe.
        directory: where the run is written down; it has the checkpoint of step `first`.
        first: steps that are behind the run; 0 for a new one.
        console: shows the progress.

    Returns:
        The summary; None if the run was stopped, with a checkpoint.

    Raises:
        AxpoError: see `axpo.training.trainer.train`; or the ranks were lost twice after the same
            checkpoint; or a node or actor was lost that the run cannot do without. It says how to
            go on.
    """
    try:
        return _with_a_second_start(recipe, directory, first, console)
    except (ActorsLost, RayError, TimeoutError) as error:
        raise _ended(directory, error) from error


def _with_a_second_start(
    recipe: Recipe, directory: RunDirectory, first: int, console: Console
) -> dict[str, Any] | None:
    """Train; start all actors again if the ranks were lost, once for each checkpoint."""
    went_back_to: int | None = None
    since = process_start()
    while True:
        try:
            return _train_run(recipe, directory, first, console, since)
        except RanksLost as error:
            first = directory.wind_back()
            directory.log_event("ranks lost", reason=str(error), step=first)
            if first == went_back_to:
                why = AxpoError(f"{error}. It is the second time after step {first}")
                raise _ended(directory, why) from error
            went_back_to, since = first, time.time()
            console.print(
                f"{error}. Going on from step {first}, with all actors started again",
                markup=False,
                highlight=False,
            )
        except AxpoError as error:
            if went_back_to is None:
                raise
            # For example, the nodes that are left have no room for the run.
            raise _ended(directory, error) from error


def _ended(directory: RunDirectory, error: Exception) -> AxpoError:
    """Return the one error that ends a run which can go on later, and write it down."""
    why = str(error) if isinstance(error, AxpoError) else cause_of(error)
    directory.log_event("failed", reason=why)
    again = f"continue with --resume {directory.path}"
    if again in why.lower():
        return AxpoError(why)
    return AxpoError(f"{why}. What the processes printed is in {directory.path}/logs; {again}")


def _train_run(
    recipe: Recipe, directory: RunDirectory, first: int, console: Console, since: float
) -> dict[str, Any] | None:
    """Start all actors and train from step `first` on; this start began at `since`."""
    # The data is read before anything starts: a fault in it then costs no time.
    task = recipe.task.load()
    # The actors end before the Ray session does, and both before the report is written.
    with (
        Progress(recipe.steps, first, console) as progress,
        ray_session(recipe, logs=directory.path / "logs"),
    ):
        for reason in directory.damaged:
            progress.say(f"damaged checkpoint set aside: {reason}")
        resumed = f", resumed at step {first}" if first else ""
        progress.say(f"run {directory.path}{resumed}")
        with ExitStack() as stack:
            gauges = stack.enter_context(Gauges(directory.path.resolve().name))
            log = both(_ledger(directory, first).log, gauges.log)
            telling = Telling(log, progress.say, first, directory.path)
            with progress.phase("start"):
                decode = _decode(recipe)
                started = training_actors(recipe, task, directory.path, telling)
                actors = stack.enter_context(started)
                if first:
                    actors.learner.load(str(directory.checkpoints.path(first)))
            stack.enter_context(ranks_watched(actors.learner, actors.pool))
            _write_nodes(directory, telling.starting.plan)
            _tell_start(directory, actors, since, progress.say)
            # Engines and ranks serve: only now the run has begun, or goes on.
            directory.log_event("resume" if first else "start", step=first)
            flow = Flow(recipe, task, actors.pool, actors.resampler, telling.log)
            flow.resume(_cursor(recipe, directory, first))
            stack.callback(flow.close)
            run = TrainingRun(recipe, task, actors, flow, directory, progress, decode, gauges)
            stack.enter_context(few_collections())
            return train(run, first)


def _tell_start(
    directory: RunDirectory, actors: Actors, since: float, say: Callable[[str], None]
) -> None:
    """Say what the start's time went into, and write it into meta.json."""
    found = start_timeline.work_of(actors, since)
    add_to_meta(directory.path, start=start_timeline.record(found, since))
    for line in start_timeline.lines(found, since):
        say(line)


def _write_nodes(directory: RunDirectory, plan: Plan | None) -> None:
    """Write into meta.json which nodes the run stands on."""
    if plan is not None:
        nodes = [{"name": n.name, "cpus": n.cpus, "gpus": n.gpus} for n in plan.nodes]
        add_to_meta(directory.path, nodes=nodes)


def record_run(recipe: Recipe, directory: RunDirectory, console: Console) -> None:
    """Write every step's rollouts by the recipe's model, exactly, for `replay_run`. No learner."""
    task = recipe.task.load()
    recipe = _without_carrying(recipe)
    with (
        Progress(recipe.steps, 0, console) as progress,
        ray_session(recipe, learner=False, logs=directory.path / "logs"),
        ExitStack() as stack,
    ):
        telling = Telling(_ledger(directory, 0).log, progress.say, 0, directory.path)
        with progress.phase("start"):
            decode = _decode(recipe)
            actors = rollout_actors(recipe, task, recipe.model, telling.log)
            pool, tools = stack.enter_context(actors)
            telling.has(pool)
            resampler = start_resampler(
                recipe.resampler, pool.ready(), recipe.rollout.n, recipe.seed
            )
        flow = Flow(recipe, task, pool, resampler, telling.log)
        record(Recording(recipe, pool, tools, flow, directory, progress, decode))
    directory.tracking.end({"steps": recipe.steps})


def replay_run(
    recipe: Recipe, source: RunDirectory, directory: RunDirectory, console: Console
) -> int:
    """Train on the rollouts that `record_run` wrote. No engine.

    Args:
        recipe: the run's recipe.
        source: the run directory that `record_run` wrote.
        directory: where this run is written down, with a checkpoint after the last step.
        console: shows the progress.

    Returns:
        The steps made.

    Raises:
        AxpoError: `source` holds no rollouts.
    """
    # No engine is there to ask for the special tokens.
    tokens = Chat.load(local_path(recipe.model)).tokens
    with (
        Progress(recipe.steps, 0, console) as progress,
        ray_session(recipe, workers=False, logs=directory.path / "logs"),
        ExitStack() as stack,
    ):
        with progress.phase("start"):
            parts = Parts(workers=False)
            placed = stack.enter_context(places(recipe, parts, run=directory.path))
            learner = stack.enter_context(learner_ranks(recipe, placed))
        steps = replay(Replaying(recipe, learner, tokens, directory, progress), source)
    if not steps:
        raise AxpoError(f"{source.path}: no rollouts to replay (write them with --rollouts-only)")
    directory.tracking.end({"steps": steps})
    return steps


def _without_carrying(recipe: Recipe) -> Recipe:
    """Return a recipe whose groups wait for their forks: there is no update to run beside."""
    if not recipe.resampler.schedule.carries:
        return recipe
    resampler = recipe.resampler.model_copy(update={"schedule": Batch()})
    return recipe.model_copy(update={"resampler": resampler})


def _ledger(directory: RunDirectory, first: int) -> Ledger:
    """Open the log of the run's questions; a new process of the run begins in it."""
    ledger = Ledger(directory.path / "rollouts.jsonl")
    ledger.log("started", step=first)
    return ledger


def _decode(recipe: Recipe) -> Decode:
    with span("tokenizer"):
        return Chat.load(local_path(recipe.model)).decode


def _cursor(recipe: Recipe, directory: RunDirectory, first: int) -> Cursor:
    """Return the state of the questions after step `first`.

    A checkpoint without a cursor is a replay's, or there is none at step 0: every step before had
    one batch of its own questions.
    """
    saved = load_cursor(directory.checkpoints.path(first))
    return saved or Cursor(following=first * recipe.questions_per_step, batch=first)
