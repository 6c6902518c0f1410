"""The training loop, as in the paper: questions become groups, groups become forks, outcomes become advantages, advantages
become an update, the update becomes the next policy."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from axpo.actors import Actors
from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.evaluate import complete, held_out, stored
from axpo.metrics import diagnostics, tool_metrics
from axpo.progress import Progress
from axpo.run import RunDirectory
from axpo.tasks import Task
from learner.credit import TrainItem, credit
from rollout_workers.trajectory import Group, SpecialTokens


class Phases(Protocol):
    def phase(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Step:
    """What one step produced."""

    groups: list[Group]
    items: list[TrainItem]
    update: dict[str, float]
    dropped: int


def train_step(recipe: Recipe, task: Task, actors: Actors, step: int, progress: Phases) -> Step:
    """Policy version `step` in, version `step + 1` in the learner and on every engine out."""
    batch = range(step * recipe.questions_per_step, (step + 1) * recipe.questions_per_step)
    questions = [stored(task.train(index)) for index in batch]
    with progress.phase("rollout"):
        groups, dropped = complete(actors.pool.rollout(questions, step), questions)
    if recipe.algorithm == "axpo":
        with progress.phase("resample"):
            groups = actors.resample(groups, step)
    with progress.phase("learn"):
        items = credit(groups, actors.tokens, recipe.learner.baseline)
        update = actors.learner.update(items) if items else {}
    with progress.phase("sync"):
        actors.learner.sync_weights(actors.pool.workers, version=step + 1)
    return Step(groups, items, update, dropped)


def train(
    recipe: Recipe, task: Task, actors: Actors, run: RunDirectory, progress: Progress, decode: Any, first: int = 0
) -> dict[str, Any] | None:
    """Steps `first` .. `recipe.steps`, then the summary (also written to the run directory).

    With `first` > 0 the learner must hold the checkpoint of that step. Data order is a function of the step, so a resumed
    run sees what an uninterrupted one would have. SIGTERM ends the run after the step in progress, with a checkpoint and
    without a summary (None). Raises AxpoError where `learner.max_skipped` updates in a row were not finite.
    """
    stop = StopRequest()
    with progress.phase("sync"):
        actors.learner.sync_weights(actors.pool.workers, version=first)
    if first == 0:
        run.log_metrics(0, evaluation(recipe, task, actors, progress) | progress.timer.take())
    for step in range(first, recipe.steps):
        result = train_step(recipe, task, actors, step, progress)
        done = step + 1
        times = progress.timer.take()
        run.log_metrics(done, measurements(result, actors.tokens, times) | tool_metrics(actors.tools.take_stats()))
        run.save_groups(done, result.groups, decode, result.items, recipe.logging.groups_kept)
        if result.dropped:
            run.log_event("groups dropped", step=done, count=result.dropped)
        last = done == recipe.steps
        if last or (recipe.evaluation.every and done % recipe.evaluation.every == 0):
            run.log_metrics(done, evaluation(recipe, task, actors, progress))
        broken = result.update.get("skipped_in_a_row", 0) >= recipe.learner.max_skipped
        if last or stop.requested or broken or done % recipe.checkpoint_every == 0:
            with progress.phase("checkpoint"):
                actors.learner.save(str(run.checkpoint(done)))
            run.log_event("checkpoint", step=done)
            run.prune_checkpoints(recipe.keep_checkpoints)
        run.log_metrics(done, progress.timer.take())
        progress.step(done, run.metrics()[-1])
        if broken:
            raise AxpoError(f"{recipe.learner.max_skipped} updates in a row were not finite: stopped after step {done}, with a checkpoint")
        if stop.requested and not last:
            run.log_event("stopped", step=done)
            return None
    return summarize(run)


class StopRequest:
    """Whether this process was asked to end (SIGTERM: preemption, `kill`, a job scheduler's time limit). A second one ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        # Ray has set its own handler, which would end the run in the middle of a step.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._request)

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def evaluation(recipe: Recipe, task: Task, actors: Actors, progress: Phases) -> dict[str, float]:
    """Held-out numbers of the engines' policy, as `eval/...`, and of the tools it called, as `eval_tool/...`."""
    with progress.phase("evaluate"):
        numbers = {f"eval/{name}": value for name, value in held_out(actors.pool, task, recipe.evaluation).items()}
    return numbers | tool_metrics(actors.tools.take_stats(), "eval_tool")


def measurements(result: Step, tokens: SpecialTokens, times: dict[str, float]) -> dict[str, float]:
    """A step's line of metrics: the paper's diagnostics, the update's numbers, seconds by phase, generated tokens per second."""
    generated = sum(t.policy_tokens for g in result.groups for t in (*g.rollouts, *(c for r in g.resamples for c in r.continuations)))
    generating = times.get("time/rollout", 0.0) + times.get("time/resample", 0.0)
    return {
        **result.update,
        **diagnostics(result.groups, tokens),
        **times,
        "generated_tokens": float(generated),
        "tokens_per_second": generated / generating if generating else 0.0,
        "groups_dropped": float(result.dropped),
    }


def summarize(run: RunDirectory) -> dict[str, Any]:
    """Held-out numbers before and after, and what it cost, from the run's own metrics (so a resumed run counts whole)."""
    rows = run.metrics()
    start, end = rows[0], rows[-1]
    names = [name.removeprefix("eval/") for name in end if name.startswith("eval/") and name in start and name != "eval/dropped"]
    numbers = {f"{name}_{when}": row[f"eval/{name}"] for name in names for when, row in (("start", start), ("end", end))}
    seconds = sum(value for row in rows for name, value in row.items() if name.startswith("time/") and value)
    tokens = int(sum(row.get("generated_tokens") or 0 for row in rows))
    return run.write_summary(**numbers, steps=end["step"], seconds=round(seconds, 1), tokens=tokens)
