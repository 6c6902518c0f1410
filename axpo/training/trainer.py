"""The training loop, as in the paper.

Questions become groups, groups become forks, outcomes become advantages, advantages become an
update, and the update becomes the next policy: that is `train_step`. `train` repeats it, and writes
down, evaluates and saves what is due.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import by_family, diagnostics, resample_diagnostics
from axpo.evaluation.held_out import held_out
from axpo.evaluation.known import known_numbers
from axpo.record.files import step_name
from axpo.record.records import Decode
from axpo.record.run import START_KNOWN, RunDirectory
from axpo.record.set_aside import HELD_OUT, read_set_aside
from axpo.record.summary import write_summary
from axpo.tasks import Task
from axpo.training.actors import Actors
from axpo.training.cursor import Cursor
from axpo.training.due import Due, End
from axpo.training.flow import Flow, Taken
from axpo.training.gauges import Gauges
from axpo.training.metrics import batch_metrics, rollout_metrics, shaping_metrics, tool_metrics
from axpo.training.progress import Progress
from axpo.training.stop import StopRequest
from learner.credit import TrainItem, credit
from rollout_workers.fleet import WorkersFailed
from rollout_workers.trajectory import Group


class Phases(Protocol):
    """What times the phases of a step: `Progress`, or nothing in a test."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the block as `name`."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training run consists of."""

    recipe: Recipe
    task: Task
    actors: Actors
    flow: Flow
    directory: RunDirectory
    progress: Progress
    decode: Decode  # for the trajectories that people read
    gauges: Gauges | None = None


@dataclass(frozen=True)
class Step:
    """What one step produced."""

    batch: Taken
    items: list[TrainItem]
    update: dict[str, float]


def train_step(recipe: Recipe, actors: Actors, flow: Flow, step: int, progress: Phases) -> Step:
    """Turn policy version `step` into version `step + 1`, in the learner and on the engines."""
    with progress.phase("rollout"):
        # Questions become rollouts. As groups finish, the resampler forks those that triggered.
        flow.feed(step)
        batch = flow.take(step)
    if recipe.sync_at == "batch":
        # The next batch is begun by the last update, and generated beside this one.
        with progress.phase("sync"):
            actors.policy.publish()
        flow.feed(step + 1, version=step)
    with progress.phase("learn"):
        items = credit(batch.groups, actors.tokens, recipe.learner, batch.carried)
        update = actors.policy.update(items)
    if recipe.sync_at == "update":
        with progress.phase("sync"):
            actors.policy.publish()
    return Step(batch, items, update)


def train(run: TrainingRun, first: int = 0) -> dict[str, Any] | None:
    """Make the steps from `first` to `recipe.steps`.

    Args:
        run: what the run consists of. With `first` > 0 the learner must hold the checkpoint of
            that step, and the flow its cursor.
        first: steps that are behind the run.

    Returns:
        The summary, which is also in the run directory. None if SIGTERM or Ctrl-C ended the run:
        after the step in progress, with a checkpoint and without a summary.

    Raises:
        AxpoError: too many rollout workers were lost (the run can be resumed from a checkpoint of
            the last complete step), or `learner.max_skipped` updates in a row were not finite.
    """
    with StopRequest(run.progress.say) as stop:
        end = _steps(run, Due(run.recipe, stop), first)
    if end is End.STOPPED:
        return None
    summary = summarize(run.directory)
    run.directory.tracking.end(summary)
    return summary


def _steps(run: TrainingRun, due: Due, first: int) -> End | None:
    """Make the steps; return STOPPED if the process was asked to end, None after the last one."""
    _begin(run, first)
    for step in range(first, run.recipe.steps):
        done = step + 1
        with _profiled(run, done):
            result = _train_step_or_save(run, step, first)
        _write_down(run, done, result)
        if due.evaluation(done):
            evaluation(run, done)
        end = due.end(done, result.update)
        # Its groups must not stay in memory while the next ones come in.
        del result
        if due.checkpoint(done, end):
            # The last checkpoint is waited for: nothing would be there to finish it.
            wait = end is not None or not run.recipe.checkpoint_async
            checkpoint(run, done, run.flow.cursor, wait=wait)
            run.directory.prune_checkpoints(run.recipe.keep_checkpoints)
        _end_step(run, done)
        if end is End.NOT_FINITE:
            raise AxpoError(
                f"{run.recipe.learner.max_skipped} updates in a row were not finite: "
                f"stopped after step {done}, with a checkpoint"
            )
        if end is End.STOPPED:
            run.directory.log_event("stopped", step=done)
            return End.STOPPED
    return None


@contextmanager
def _profiled(run: TrainingRun, done: int) -> Iterator[None]:
    """Let the ranks be profiled during step `done` if it is in the window of the recipe."""
    window, learner = run.recipe.learner.profile_steps, run.actors.learner
    if window is None or not window[0] <= done <= window[1]:
        yield
        return
    learner.begin_profile()
    yield  # if the step fails, the ranks may be gone, too
    with run.progress.phase("profile"):
        learner.end_profile(str(run.directory.path / "profile" / step_name(done)))


def _begin(run: TrainingRun, first: int) -> None:
    """Give the engines the learner's policy; at the start of a run, evaluate it."""
    # The engines loaded the recipe's model. After a resume the learner holds another one.
    with run.progress.phase("sync"):
        run.actors.policy.publish(first)
    if first == 0:
        if run.recipe.evaluation.start:
            start_evaluation(run)
        run.directory.log_metrics(0, run.progress.timer.take())


def start_evaluation(run: TrainingRun) -> None:
    """Write the held-out numbers of the start model: those that came with it, or measure them."""
    recipe = run.recipe
    known = None
    if recipe.evaluation.start != "measure":
        known = known_numbers(recipe, run.task)
    if known is None:
        evaluation(run, 0)
        return
    run.directory.log_event(START_KNOWN, step=0)
    run.directory.log_held_out(0, known.counts)
    run.directory.log_metrics(0, {f"eval/{name}": value for name, value in known.numbers.items()})
    run.progress.say(
        f"the start model's held-out numbers came with it (held_out.json of {recipe.model}); "
        "--set evaluation.start=measure measures them"
    )


def _train_step_or_save(run: TrainingRun, step: int, first: int) -> Step:
    """Make one step. If too many workers are lost in it, save the last complete step first."""
    actors = run.actors
    cursor = run.flow.cursor
    try:
        return train_step(run.recipe, actors, run.flow, step, run.progress)
    except WorkersFailed as error:
        actors.learner.finish_save()
        # Only if this step's update has not begun, and a checkpoint of `step` is not there yet.
        if actors.policy.version == step and step > first:
            checkpoint(run, step, cursor)
        path = run.directory.path
        raise AxpoError(f"step {step + 1}: {error}. Continue with --resume {path}") from error


def _write_down(run: TrainingRun, done: int, result: Step) -> None:
    """Write a step's metrics, trajectories and timeline into the run directory."""
    batch, directory = result.batch, run.directory
    # What follows in this step (evaluation, checkpoint) is timed apart, see `_end_step`.
    times = run.progress.timer.take()
    numbers = measurements(run.recipe, result, run.actors, times)
    tools = tool_metrics(run.actors.tools.take_stats())
    directory.log_metrics(done, numbers | tools)
    directory.save_groups(
        done, batch.groups, run.decode, result.items, run.recipe.logging.groups_kept
    )
    directory.complete_groups(batch.carried, run.decode, result.items)
    directory.save_timeline(done, batch.finished, batch.resampled)
    if batch.dropped:
        directory.log_event("groups dropped", step=done, count=batch.dropped)
    run.progress.set_aside("question", batch.unusable)


def _end_step(run: TrainingRun, done: int) -> None:
    """Write the seconds since the step's metrics, and show the step."""
    run.directory.log_metrics(done, run.progress.timer.take())
    row = run.directory.metrics()[-1]
    run.progress.step(done, row)
    if run.gauges is not None:
        run.gauges.step(done, row)
    for fault in run.directory.tracking.take_faults():
        run.directory.log_event("tracker fault", reason=fault)
        run.progress.say(f"tracker {fault}")


def checkpoint(run: TrainingRun, done: int, cursor: Cursor, *, wait: bool = True) -> None:
    """Save the learner's state after `done` steps, and the state of the questions.

    Args:
        run: what is saved.
        done: steps that are done.
        cursor: the state of the questions.
        wait: return only when the checkpoint is complete; otherwise it appears later.
    """
    path = run.directory.checkpoints.path(done)
    with run.progress.phase("checkpoint"):
        run.actors.learner.finish_save()
        if path.exists():
            return
        run.directory.log_event("checkpoint", step=done)
        with run.actors.policy.learner_alone() as learner:
            learner.save(str(path), add=cursor.save, wait=wait)


def evaluation(run: TrainingRun, done: int) -> None:
    """Write the held-out numbers of the policy after `done` steps.

    They are `eval/...`; those of the tools that it called are `eval_tool/...`.
    """
    recipe, actors = run.recipe, run.actors
    with run.progress.phase("sync"):
        actors.policy.catch_up()
    with run.progress.phase("evaluate"):
        found = held_out(
            actors.pool,
            run.task,
            recipe.evaluation,
            recipe.resampler.trigger.success_above,
            keep=recipe.logging.held_out_kept,
        )
    # What the engines counted here is not the next step's.
    actors.pool.take_stats()
    run.directory.log_held_out(done, found.counts)
    run.directory.save_held_out(done, found.kept, run.decode)
    run.progress.set_aside("held-out question", found.unusable)
    for reason in found.unusable:
        run.directory.log_event(HELD_OUT, step=done, reason=reason)
    held_out_numbers = {f"eval/{name}": value for name, value in found.numbers.items()}
    tools = tool_metrics(actors.tools.take_stats(), "eval_tool")
    run.directory.log_metrics(done, held_out_numbers | tools)


def measurements(
    recipe: Recipe, result: Step, actors: Actors, times: Mapping[str, float]
) -> dict[str, float]:
    """Return a step's line of metrics.

    It has the update's numbers, the paper's diagnostics, what generation cost, and the seconds of
    each phase.
    """
    batch = result.batch

    def diagnose(groups: Sequence[Group]) -> dict[str, float]:
        return diagnostics(groups, actors.tokens, recipe.resampler.trigger.success_above)

    def diagnose_forks(groups: Sequence[Group]) -> dict[str, float]:
        return resample_diagnostics(groups, actors.tokens)

    # Carried forks are of earlier batches than the rollouts.
    families = by_family(batch.finished, diagnose) | by_family(batch.resampled, diagnose_forks)
    # The time between two batches: in an asynchronous run the engines generate in all of it.
    seconds = sum(times.get(f"time/{phase}", 0.0) for phase in ("rollout", "learn", "sync"))
    return {
        **result.update,
        **diagnose(batch.finished),
        **diagnose_forks(batch.resampled),
        **{f"family/{name}": value for name, value in families.items()},
        **shaping_metrics(batch.finished, actors.tokens, recipe.learner.credit.tool_bonus),
        **rollout_metrics(batch.finished, batch.resampled, seconds),
        **actors.pool.take_stats(),
        **times,
        **batch_metrics(batch),
    }


def summarize(directory: RunDirectory) -> dict[str, Any]:
    """Write the summary: held-out numbers before and after, and what the run cost.

    It is made of the run's own metrics, so a resumed run counts as a whole.
    """
    rows = directory.metrics()
    # Row 0 is the start model's: its numbers are missing if it was not evaluated.
    start, end = rows[0], rows[-1]
    numbers: dict[str, Any] = {}
    for key in end:
        name = key.removeprefix("eval/")
        if name != key and name not in ("dropped", "unusable"):
            numbers[f"{name}_start"] = start.get(key)
            numbers[f"{name}_end"] = end[key]
    seconds = sum(_seconds(row) for row in rows)
    tokens = int(sum(row.get("generated_tokens") or 0 for row in rows))
    cost = {"steps": end["step"], "seconds": round(seconds, 1), "tokens": tokens}
    # Only if there is something to say: most runs ask every question.
    set_aside = read_set_aside(directory.path).count
    told = {"set_aside": set_aside} if set_aside else {}
    return write_summary(directory.path, numbers | cost | told)


def _seconds(row: Mapping[str, Any]) -> float:
    """Return the seconds of all phases of a step."""
    return sum(value for name, value in row.items() if name.startswith("time/") and value)
