"""`axpo train` and `axpo demo`: a run from its recipe, or a run that goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from axpo.arguments import OptionalRecipe, Overrides, Replayed, Resumed
from axpo.errors import AxpoError
from axpo.inputs import check_while_ray_starts, print_line
from axpo.spans import span

if TYPE_CHECKING:
    from axpo.config import Recipe
    from axpo.record.run import RunDirectory


def train(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="name of the run directory; must not exist. Default: recipe, algorithm and time"
        ),
    ] = None,
    resume: Resumed = None,
    rollouts_only: Annotated[
        bool,
        typer.Option("--rollouts-only", help="write every step's rollouts, exactly; no learner"),
    ] = False,
    replay: Replayed = None,
) -> None:
    """Train, and write a run directory with metrics, checkpoints and a report.

    With AXPO, or with plain GRPO: --set algorithm=grpo. --resume continues a run with its own
    recipe; RECIPE is not needed then, and --set is refused. Ctrl-C ends a run after its step, with
    a checkpoint; twice, at once.
    """
    with span("imports"):
        from axpo.record.meta import write_meta
        from axpo.record.transcript import Transcript
        from axpo.training.run import record_run, replay_run

    if sum(map(bool, (resume, replay, rollouts_only))) > 1:
        raise AxpoError("--resume, --replay and --rollouts-only: at most one of them")
    console = Transcript()
    source: RunDirectory | None = None
    # A run goes on exactly as it was started, or it could not be repeated.
    if resume is not None:
        if overrides or run:
            raise AxpoError("--resume continues a run as it was started: leave out --set and --run")
        loaded, directory, first = _resumed(resume, console)
    elif recipe is None:
        raise AxpoError("train: expected a RECIPE (`axpo recipes` lists some), or --resume RUN")
    else:
        loaded, source = _checked(recipe, overrides, replay, console)
        directory, first = _new_run(loaded, run), 0
    # The directory is locked until the end: one run, one process.
    with directory, console.written_to(directory.path):
        write_meta(directory.path, first)
        if rollouts_only:
            record_run(loaded, directory, console)
            print_line(f"rollouts {directory.path / 'rollouts'}", console)
        elif source is not None:
            steps = replay_run(loaded, source, directory, console)
            print_line(f"checkpoint {directory.checkpoints.path(steps)}", console)
        else:
            _train(loaded, directory, first, console)


def demo(
    overrides: Overrides = None,
    run: Annotated[str | None, typer.Option(help="name of the run directory")] = None,
) -> None:
    """Train the demo: a tiny model, five to ten minutes on two CPU cores (`axpo train demo`)."""
    train(Path("demo"), overrides, run)


def _train(recipe: Recipe, directory: RunDirectory, first: int, console: Console) -> None:
    """Train, write the report, and print the summary."""
    from axpo.report.page import render
    from axpo.training.progress import summary_table
    from axpo.training.run import train_run

    path = directory.path
    summary = train_run(recipe, directory, first, console)
    # Also of a run that was stopped: its curves are worth a look.
    report = render(path)
    if summary is None:
        print_line(f"stopped with a checkpoint; continue with --resume {path}", console)
        return
    title = f"{recipe.name} · {recipe.algorithm}"
    console.print(summary_table(summary, title, {"run": path, "report": report}))


def _checked(
    recipe: Path, overrides: Overrides, replay: Path | None, console: Console
) -> tuple[Recipe, RunDirectory | None]:
    """Return a recipe that can run, and the run whose rollouts are replayed, if any.

    It comes before anything is written: what is no run must leave no new one behind.
    """
    from axpo.config import load_recipe
    from axpo.record.run import RunDirectory

    loaded = load_recipe(recipe, overrides or ())
    source = None if replay is None else RunDirectory.open(replay)
    # A replay asks no judge.
    further = [] if source else [loaded.task.check_service]
    check_while_ray_starts(loaded, console, *further)
    return loaded, source


def _new_run(recipe: Recipe, name: str | None) -> RunDirectory:
    from axpo.record.run import RunDirectory

    name = name or f"{recipe.name}-{recipe.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
    resolved = recipe.model_dump(mode="json")
    settings = recipe.logging
    return RunDirectory.create(name, resolved, settings.root, trackers=settings.trackers)


def _resumed(path: Path, console: Console) -> tuple[Recipe, RunDirectory, int]:
    """Return a run's own recipe, its directory, and the step of its last checkpoint."""
    from axpo.config import load_recipe
    from axpo.record.run import RunDirectory

    run = RunDirectory.open(path)
    recipe = load_recipe(run.path / "recipe.yaml")
    check_while_ray_starts(recipe, console, recipe.task.check_service)
    directory, first = RunDirectory.resume(path, trackers=recipe.logging.trackers)
    return recipe, directory, first
