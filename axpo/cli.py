"""The command line: check, sft, train, eval, report, model build, index build, tools list, call and check."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from axpo.errors import AxpoError
from axpo.index_cli import app as index_app
from axpo.tools_cli import app as tools_app

if TYPE_CHECKING:
    from axpo.config import Recipe

app = typer.Typer(
    help="Train vision-language agents to use tools, by reinforcement learning (AXPO) on Ray, vLLM and DeepSpeed ZeRO-3.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
model_app = typer.Typer(help="The embedded model.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(index_app, name="index")
app.add_typer(tools_app, name="tools")
console = Console()

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="recipe, a YAML file (see deploy/recipes/)")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change one field of the recipe, e.g. learner.lr=1e-5; repeatable",
    ),
]


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu_memory: Annotated[
        float, typer.Option(metavar="GIB", help="memory of one GPU, for the estimate's warnings")
    ] = 80,
) -> None:
    """Validate a recipe, print the resolved run and estimate its memory. Starts nothing."""
    import yaml
    from rich.syntax import Syntax

    from axpo.memory import estimate, read_config, shape_of
    from resampler.history import History

    loaded = _load(recipe, overrides)
    console.print(
        Syntax(
            yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False),
            "yaml",
            background_color="default",
        )
    )
    n, resampler = loaded.rollout.n, loaded.resampler
    forks = (
        resampler.budget.prefixes(loaded.questions_per_step, n, resampler.k, History())
        * resampler.k
        if loaded.algorithm == "axpo"
        else 0
    )
    learner, rollout = loaded.learner, loaded.rollout
    console.print(
        f"[green]ok[/] {loaded.name}: {loaded.algorithm}, {loaded.steps} steps of {loaded.questions_per_step} questions x {n} rollouts"
        f" + at most {forks} forks; {learner.ranks} ZeRO-3 ranks ({learner.gpus_per_rank} GPU each),"
        f" {rollout.workers} engines ({rollout.gpus_per_worker:g} GPU each)",
        highlight=False,
    )
    config = read_config(loaded.model)
    if config is None:
        console.print(
            f"[yellow]no memory estimate[/]: the hub does not give {escape(loaded.model)}'s config.json",
            highlight=False,
        )
        return
    lines, warnings = estimate(loaded, shape_of(config), gpu_memory)
    for line in lines:
        console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)
    for warning in warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}", highlight=False, soft_wrap=True)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="name of the run directory; must not exist. Default: recipe, algorithm and time"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="continue this run from its last checkpoint, with its own recipe"
        ),
    ] = None,
    rollouts_only: Annotated[
        bool,
        typer.Option("--rollouts-only", help="write every step's rollouts, exactly; no learner"),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="train on what --rollouts-only wrote there; no engine"),
    ] = None,
) -> None:
    """Train with AXPO (or plain GRPO: --set algorithm=grpo) and write a run directory with metrics, checkpoints and a report.

    With --resume the run's own recipe is used; RECIPE is ignored and --set is refused.
    """
    from axpo.record.run import RunDirectory

    if sum(map(bool, (resume, replay, rollouts_only))) > 1:
        raise AxpoError("--resume, --replay and --rollouts-only: at most one of them")
    if resume is not None:
        if overrides or run:
            raise AxpoError("--resume continues a run as it was started: leave out --set and --run")
        loaded = _parse(RunDirectory.open(resume))
        directory, first = RunDirectory.resume(resume, tensorboard=loaded.logging.tensorboard)
    else:
        loaded, first = _load(recipe, overrides), 0
        name = run or f"{loaded.name}-{loaded.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
        resolved = loaded.model_dump(mode="json")
        directory = RunDirectory.create(
            name, resolved, loaded.logging.root, tensorboard=loaded.logging.tensorboard
        )
    with directory:
        if rollouts_only:
            _record(loaded, directory)
        elif replay:
            _replay(loaded, RunDirectory.open(replay), directory)
        else:
            _train(loaded, directory, first)


def _train(recipe: Recipe, run: Any, first: int) -> None:
    from axpo.record.ledger import Ledger
    from axpo.report.page import render
    from axpo.session import local_path, ray_session
    from axpo.tasks import load_task
    from axpo.training.actors import training_actors
    from axpo.training.cursor import Cursor, load_cursor
    from axpo.training.flow import Flow
    from axpo.training.progress import Progress, summary_table
    from axpo.training.trainer import train
    from rollout_workers.chat import Chat

    task, ledger = load_task(recipe.task), Ledger(run.path / "rollouts.jsonl")
    ledger.log("started", step=first)
    with Progress(recipe.steps, first, console) as progress, ray_session(recipe):
        for reason in run.damaged:
            progress.say(f"damaged checkpoint set aside: {reason}")
        progress.say(f"run {run.path}" + (f", resumed at step {first}" if first else ""))
        with ExitStack() as stack:
            with progress.phase("start"):
                actors = stack.enter_context(training_actors(recipe, task, ledger.log))
                decode = Chat.load(local_path(recipe.model)).decode
                if first:
                    actors.learner.load(str(run.checkpoints.path(first)))
            run.log_event("resume" if first else "start", step=first)
            cursor = load_cursor(run.checkpoints.path(first)) or Cursor(
                first * recipe.questions_per_step, first
            )
            flow = Flow(recipe, task, actors.pool, actors.resampler, cursor, ledger.log)
            stack.callback(flow.close)
            summary = train(recipe, task, actors, flow, run, progress, decode, first)
    report = render(run.path)
    if summary is None:
        console.print(
            f"stopped with a checkpoint; continue with --resume {run.path}", highlight=False
        )
        return
    console.print(
        summary_table(
            summary, f"{recipe.name} · {recipe.algorithm}", {"run": run.path, "report": report}
        )
    )


def _record(recipe: Recipe, run: Any) -> None:
    from axpo.record.ledger import Ledger
    from axpo.session import local_path, ray_session, rollout_actors
    from axpo.tasks import load_task
    from axpo.training.flow import Flow
    from axpo.training.progress import Progress
    from axpo.training.replay import record
    from resampler.resampler import start_resampler
    from rollout_workers.chat import Chat

    task, ledger = load_task(recipe.task), Ledger(run.path / "rollouts.jsonl")
    ledger.log("started", step=0)
    with (
        Progress(recipe.steps, 0, console) as progress,
        ray_session(recipe, learner=False),
        ExitStack() as stack,
    ):
        with progress.phase("start"):
            pool, tools = stack.enter_context(
                rollout_actors(recipe, task, recipe.model, ledger.log)
            )
            resampler = start_resampler(
                recipe.resampler, pool.ready(), recipe.rollout.n, recipe.seed
            )
        flow = Flow(recipe, task, pool, resampler, log=ledger.log)
        record(recipe, pool, tools, flow, run, progress, Chat.load(local_path(recipe.model)).decode)
    console.print(f"rollouts {run.path / 'rollouts'}")


def _replay(recipe: Recipe, source: Any, run: Any) -> None:
    from axpo.session import learner_ranks, local_path, ray_session
    from axpo.training.progress import Progress
    from axpo.training.replay import replay
    from rollout_workers.chat import Chat

    tokens = Chat.load(local_path(recipe.model)).tokens
    with (
        Progress(recipe.steps, 0, console) as progress,
        ray_session(recipe, workers=False),
        ExitStack() as stack,
    ):
        with progress.phase("start"):
            learner = stack.enter_context(learner_ranks(recipe))
        steps = replay(recipe, source, learner, tokens, run, progress)
    if not steps:
        raise AxpoError(f"{source.path}: no rollouts to replay (write them with --rollouts-only)")
    console.print(f"checkpoint {run.checkpoints.path(steps)}")


@app.command(name="eval")
def evaluate(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|RUN",
            help="a recipe (its model) or a run directory (its last checkpoint)",
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Held-out Pass@1, Pass@4 and tool use of a model."""
    from axpo.evaluation.held_out import evaluate_model, load_target
    from axpo.record.summary import label
    from axpo.session import ray_session

    recipe, model = load_target(target, overrides or ())
    with ray_session(recipe, learner=False), console.status("evaluating"):
        numbers = evaluate_model(recipe, model)
    for name, value in numbers.items():
        console.print(
            f"{label(name):<22} " + (f"{value:.0f}" if name == "dropped" else f"{value:.1%}"),
            highlight=False,
        )


@app.command()
def sft(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Supervised fine-tuning on the task's demonstrations or your own, with the same learner; writes the `sft.output` model folder."""
    from axpo.session import ray_session
    from axpo.sft.fine_tune import fine_tune

    loaded = _load(recipe, overrides)
    with ray_session(loaded):
        folder = fine_tune(loaded, console)
    console.print(f"model {folder}")


@model_app.command()
def build(
    recipe: RecipeFile = Path("deploy/recipes/embedded.yaml"), overrides: Overrides = None
) -> None:
    """Build the embedded model from nothing: tokenizer, random weights, SFT stages, measurements, model card."""
    from axpo.sft.fine_tune import build_embedded

    folder = build_embedded(_load(recipe, overrides, inputs=False), console)
    console.print(f"model {folder}")


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]) -> None:
    """Write RUN/report.html: curves, and trajectories a person can read."""
    from axpo.report.page import render

    console.print(f"report {render(run)}")


def _load(recipe: Path, overrides: list[str] | None, inputs: bool = True) -> Recipe:
    from axpo.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if inputs:
        loaded.check_inputs()
    return loaded


def _parse(run: Any) -> Recipe:
    from axpo.config import parse_recipe

    recipe = parse_recipe(run.recipe(), (), str(run.path / "recipe.yaml"))
    recipe.check_inputs()
    return recipe


def main() -> None:
    """Entry point: an AxpoError is one line and exit code 2."""
    try:
        app()
    except AxpoError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[red]error[/] {escape(str(error))}", highlight=False, markup=True
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
