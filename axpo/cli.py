"""The command line. Commands parse their options, call what does the work, and print.

Imports stand inside the commands, so that `axpo --help` answers at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from axpo.data_cli import app as data_app
from axpo.errors import AxpoError
from axpo.index_cli import app as index_app
from axpo.texts import printable
from axpo.tools_cli import app as tools_app

if TYPE_CHECKING:
    from axpo.config import Recipe
    from axpo.record.run import RunDirectory
    from axpo.tasks.task import Fits

app = typer.Typer(
    help="Train vision-language agents to use tools, by reinforcement learning (AXPO) on Ray, vLLM "
    "and DeepSpeed ZeRO-3.\n\n"
    "A recipe (YAML) describes a run. `axpo check` validates it, `axpo train` runs it, `axpo list` "
    "shows the variants of the method that it may name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
model_app = typer.Typer(help="Build the embedded model.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")
app.add_typer(index_app, name="index")
app.add_typer(tools_app, name="tools")
console = Console()

SERVICE_S = 10.0
"""Seconds in which a judge must answer `axpo check`."""

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
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu_memory: Annotated[
        float, typer.Option(metavar="GIB", help="memory of one GPU, for the estimate's warnings")
    ] = 80,
    nodes: Annotated[
        tuple[int, int, float] | None,
        typer.Option(
            metavar="NODES GPUS CPUS",
            help="place the run on NODES nodes, each with GPUS and CPUS. Default: what it needs",
        ),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="decode every image of the data; goes on where a check was stopped"
        ),
    ] = False,
) -> None:
    """Validate a recipe and its model, print the resolved run, estimate its memory. Start nothing.

    Variants of your own (package.module:name) are imported and checked, too. What a model folder
    must have is in docs/models.md.
    """
    import yaml
    from rich.syntax import Syntax

    from axpo.config import load_recipe
    from axpo.memory import estimate, read_config, shape_of
    from axpo.model_folder import check_models
    from axpo.placement import placement_lines
    from axpo.sft.check import check_stages

    loaded = load_recipe(recipe, overrides or ())
    placement = placement_lines(loaded, nodes)
    report = check_models(loaded)
    set_aside = [*loaded.check_inputs(report.fits), *check_stages(loaded)]
    doubts = _silent_service(loaded)
    if images:
        # What a header says is said again when the image is decoded.
        set_aside += [reason for reason in _decode_images(loaded) if reason not in set_aside]
    resolved = yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False)
    console.print(Syntax(resolved, "yaml", background_color="default"))
    console.print(f"[green]ok[/] {escape(loaded.describe())}", highlight=False)
    _print_lines(report.lines)
    _print_lines(placement)
    _print_warnings([*report.warnings, *doubts])
    _print_set_aside(set_aside)
    # Without a network and without the model on disk its size is not known.
    config = read_config(loaded.model)
    if config is None:
        console.print(
            "[yellow]no memory estimate[/]: "
            f"the hub does not give {escape(loaded.model)}'s config.json",
            highlight=False,
        )
        return
    lines, warnings = estimate(loaded, shape_of(config), gpu_memory)
    _print_lines(lines)
    _print_warnings(warnings)


@app.command(name="list")
def list_variants(
    concept: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONCEPT]",
            help="objectives, baselines, rankings, fork_places, triggers, budgets, schedules, "
            "verifiers, judges, tools, tasks or benchmarks. Default: all of them",
        ),
    ] = None,
) -> None:
    """List the variants of the method that a recipe may name, a line each.

    Instead of one of these names a recipe may give the import path of your own class or function,
    package.module:name.
    """
    # Importing them registers the benchmarks and the local judge.
    import axpo.evaluation.local_judge
    import axpo.evaluation.paper  # noqa: F401
    from axpo.config import variants

    for name, described in variants(concept).items():
        console.print(f"[bold]{name}[/]", highlight=False)
        width = max((len(variant) for variant, _ in described), default=0)
        for variant, description in described:
            line = f"  {variant:<{width}}  {description}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    """Train, and write a run directory with metrics, checkpoints and a report.

    With AXPO, or with plain GRPO: --set algorithm=grpo. With --resume the run's own recipe is used;
    RECIPE is ignored and --set is refused.
    """
    from axpo.record.run import RunDirectory
    from axpo.training.run import record_run, replay_run

    if sum(map(bool, (resume, replay, rollouts_only))) > 1:
        raise AxpoError("--resume, --replay and --rollouts-only: at most one of them")
    # A run goes on exactly as it was started, or it could not be repeated.
    if resume is not None:
        if overrides or run:
            raise AxpoError("--resume continues a run as it was started: leave out --set and --run")
        loaded, directory, first = _resumed(resume)
    else:
        loaded = _load(recipe, overrides)
        if replay is None:
            loaded.task.check_service()
        directory, first = _new_run(loaded, run), 0
    # The directory is locked until the end: one run, one process.
    with directory:
        if rollouts_only:
            record_run(loaded, directory, console)
            _print_lines([f"rollouts {directory.path / 'rollouts'}"], indent="")
        elif replay:
            steps = replay_run(loaded, RunDirectory.open(replay), directory, console)
            _print_lines([f"checkpoint {directory.checkpoints.path(steps)}"], indent="")
        else:
            _train(loaded, directory, first)


def _train(recipe: Recipe, directory: RunDirectory, first: int) -> None:
    """Train, write the report, and print the summary."""
    from axpo.report.page import render
    from axpo.training.progress import summary_table
    from axpo.training.run import train_run

    path = directory.path
    summary = train_run(recipe, directory, first, console)
    # Also of a run that was stopped: its curves are worth a look.
    report = render(path)
    if summary is None:
        _print_lines([f"stopped with a checkpoint; continue with --resume {path}"], indent="")
        return
    title = f"{recipe.name} · {recipe.algorithm}"
    console.print(summary_table(summary, title, {"run": path, "report": report}))


@app.command(name="eval")
def evaluate(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="TARGET",
            help="a recipe (its model), a run directory (its last checkpoint), or a model",
        ),
    ] = None,
    overrides: Overrides = None,
    suite: Annotated[str | None, typer.Option(help="paper: its nine benchmarks")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="names with commas (axpo list benchmarks), or package.module:Name"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the benchmarks' files, as downloaded")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="exact (no judge), or a YAML file or mapping: axpo list judges"),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="answers a question")] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    tools: Annotated[
        str | None, typer.Option(help="only these of the recipe's tools, with commas; or none")
    ] = None,
    image_search: Annotated[
        bool,
        typer.Option("--image-search", help="offer a search over results that benchmarks bring"),
    ] = False,
    rotations: Annotated[str | None, typer.Option(help="of HR-Bench: one or all")] = None,
    variants: Annotated[str | None, typer.Option(help="of DynaMath: one or all")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="only the first questions of each benchmark")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the results; goes on in it")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B", help="compare the results in two folders; with --out also as a page"
        ),
    ] = None,
) -> None:
    """Measure a model: Pass@1, Pass@k and tool use, on the held-out questions or on benchmarks.

    Results of benchmarks are files (docs/evaluation.md). If an evaluation was interrupted, the same
    command goes on where it stopped.
    """
    from axpo.eval_cli import load_any, run_benchmarks, run_comparison

    if compare is not None:
        return run_comparison(*compare, out, console)
    if target is None:
        raise AxpoError("eval: expected a TARGET, or --compare A B")
    asks_benchmarks = suite is not None or benchmark is not None
    options: dict[str, Any] = {"data": data, "judge": judge, "samples": samples, "tools": tools}
    options |= {"temperature": temperature, "image_search": image_search, "limit": limit}
    options |= {"rotations": rotations, "variants": variants, "seed": seed, "out": out}
    if not asks_benchmarks:
        _refuse_given(options)
    recipe, model = load_any(target, overrides or (), benchmarks=asks_benchmarks)
    if not asks_benchmarks:
        return _held_out(recipe, model)
    options |= {"suite": suite, "benchmark": benchmark}
    _check_model(recipe, model)
    run_benchmarks(target, recipe, model, options, console)


def _refuse_given(options: Mapping[str, Any]) -> None:
    """Raise AxpoError if an option of benchmarks is given, which held-out questions ignore."""
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        verb = "needs" if len(given) == 1 else "need"
        raise AxpoError(f"{names}: {verb} --suite or --benchmark")


def _held_out(recipe: Recipe, model: str) -> None:
    """Measure a model on the held-out questions of its recipe, and print the numbers."""
    from axpo.evaluation.held_out import evaluate_model
    from axpo.record.summary import label
    from axpo.session import ray_session

    _check_inputs(recipe, model)
    recipe.task.check_service()
    with ray_session(recipe, learner=False), console.status("evaluating"):
        found = evaluate_model(recipe, model)
    for reason in found.unusable:
        _print_lines([f"set aside: {reason}"], indent="")
    for name, value in found.numbers.items():
        is_count = name in ("dropped", "unusable")
        shown = f"{value:.0f}" if is_count else f"{value:.1%}"
        console.print(f"{label(name):<22} {shown}", highlight=False)


@app.command()
def sft(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Fine-tune a model on demonstrations, the task's or yours, and write the folder `sft.output`.

    The learner is that of `axpo train`.
    """
    from axpo.session import ray_session
    from axpo.sft.check import check_stages
    from axpo.sft.fine_tune import fine_tune

    loaded = _load(recipe, overrides)
    _print_set_aside(check_stages(loaded))
    with ray_session(loaded, workers=False):
        folder = fine_tune(loaded, console)
    _print_lines([f"model {folder}"], indent="")


@model_app.command()
def build(
    recipe: RecipeFile = Path("deploy/recipes/embedded.yaml"), overrides: Overrides = None
) -> None:
    """Build the embedded model from nothing.

    That is: tokenizer, random weights, fine-tuning in stages, measurements, model card.
    """
    from axpo.config import load_recipe
    from axpo.sft.embedded_model import build_embedded

    # The recipe's model does not exist yet, so its inputs are not checked.
    folder = build_embedded(load_recipe(recipe, overrides or ()), console)
    _print_lines([f"model {folder}"], indent="")


@app.command()
def report(run: RunFolder) -> None:
    """Write RUN/report.html: curves, and trajectories that a person can read."""
    from axpo.report.page import render

    _print_lines([f"report {render(run)}"], indent="")


def _load(recipe: Path, overrides: list[str] | None) -> Recipe:
    """Read a recipe, check its model and data, and print what is doubtful about them."""
    from axpo.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    _check_inputs(loaded)
    return loaded


def _check_inputs(recipe: Recipe, model: str | None = None) -> None:
    """Check the model that will be used, or that of the recipe, and the data.

    What is doubtful about them is printed, and which questions a run sets aside.
    """
    _print_set_aside(recipe.check_inputs(_check_model(recipe, model)))


def _check_model(recipe: Recipe, model: str | None = None) -> Fits | None:
    """Check the model that will be used, or that of the recipe; print what is doubtful about it.

    Returns:
        What checks that a question fits the context, if that can be known.
    """
    from axpo.config import looks_local
    from axpo.model_folder import check_models
    from axpo.session import local_path

    # A model of the hub can only be checked whole if it is here, and it will be needed now.
    used = model or recipe.model
    if not looks_local(used):
        local_path(used)
    report = check_models(recipe, model)
    _print_warnings(report.warnings)
    return report.fits


def _silent_service(recipe: Recipe) -> list[str]:
    """Return why a judge gives no verdict now. A run would not start; it may be there by then."""
    try:
        recipe.task.check_service(SERVICE_S)
    except AxpoError as error:
        return [str(error)]
    return []


def _decode_images(recipe: Recipe) -> list[str]:
    """Decode every image of the recipe's data; return which rows a run sets aside."""
    from axpo.sft.check import decode_stages

    # A check that was stopped finds here what it has done.
    notes = Path(recipe.logging.root) / "image-checks"

    def tell(source: str, done: int, rows: int) -> None:
        _print_lines([f"images of {source}: {done:,} of {rows:,} rows"])

    return recipe.task.check_images(notes, tell) + decode_stages(recipe, notes, tell)


def _print_lines(lines: Iterable[str], indent: str = "   ") -> None:
    """Print lines that may have brackets in them, as paths may, or repeat what a file says."""
    for line in lines:
        console.print(Text(f"{indent}{printable(line)}"), soft_wrap=True)


def _print_set_aside(reasons: Sequence[str]) -> None:
    """Print why rows will be set aside, the first of them: all at once would hide the rest."""
    shown = 20
    _print_warnings(f"set aside in a run: {reason}" for reason in reasons[:shown])
    if len(reasons) > shown:
        _print_warnings([f"set aside in a run: {len(reasons) - shown} more rows"])


def _print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        line = Text.assemble(("warning", "yellow"), f" {printable(warning)}")
        console.print(line, soft_wrap=True)


def _new_run(recipe: Recipe, name: str | None) -> RunDirectory:
    from axpo.record.run import RunDirectory

    name = name or f"{recipe.name}-{recipe.algorithm}-{time.strftime('%Y%m%d-%H%M%S')}"
    resolved = recipe.model_dump(mode="json")
    settings = recipe.logging
    return RunDirectory.create(name, resolved, settings.root, tensorboard=settings.tensorboard)


def _resumed(path: Path) -> tuple[Recipe, RunDirectory, int]:
    """Return a run's own recipe, its directory, and the step of its last checkpoint."""
    from axpo.config import load_recipe
    from axpo.record.run import RunDirectory

    run = RunDirectory.open(path)
    recipe = load_recipe(run.path / "recipe.yaml")
    _check_inputs(recipe)
    recipe.task.check_service()
    directory, first = RunDirectory.resume(path, tensorboard=recipe.logging.tensorboard)
    return recipe, directory, first


def main() -> None:
    """Run the command; print an AxpoError as one line and exit with code 2."""
    try:
        app()
    except AxpoError as error:
        # An AxpoError is printable already.
        line = Text.assemble(("error", "red"), f" {error}")
        Console(stderr=True, soft_wrap=True).print(line)
        sys.exit(2)


if __name__ == "__main__":
    main()
