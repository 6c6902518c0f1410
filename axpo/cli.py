"""The command line. Commands parse their options, call what does the work, and print.

Imports stand inside the commands, so that `axpo --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from axpo.arguments import Concept, Overrides, RecipeFile, Target
from axpo.check_cli import check
from axpo.data_cli import app as data_app
from axpo.errors import AxpoError
from axpo.index_cli import app as index_app
from axpo.inputs import (
    check_inputs,
    check_model,
    checked_recipe,
    print_line,
    print_set_aside,
)
from axpo.project_cli import init, recipes_app, setup
from axpo.tools_cli import app as tools_app
from axpo.train_cli import demo, train
from axpo.view_cli import report, view

if TYPE_CHECKING:
    from axpo.config import Recipe

app = typer.Typer(
    help="Train vision-language agents to use tools, by reinforcement learning (AXPO) on Ray, vLLM "
    "and DeepSpeed ZeRO-3.\n\n"
    "A recipe (YAML) describes a run. `axpo check` validates it, `axpo train` runs it, `axpo list` "
    "shows the variants of the method that it may name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Build and measure models.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")
app.add_typer(index_app, name="index")
app.add_typer(recipes_app, name="recipes")
app.add_typer(tools_app, name="tools")
app.command()(check)
app.command()(train)
app.command()(demo)
app.command()(report)
app.command()(view)
app.command()(init)
app.command()(setup)
console = Console()


def _version(asked: bool) -> None:
    if asked:
        from axpo.record.meta import version_line

        typer.echo(version_line())
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="print the version and its parts"
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(name="list")
def list_variants(concept: Concept = None) -> None:
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
            print_line(f"  {variant:<{width}}  {description}", console)


@app.command(name="eval")
def evaluate(
    target: Target = None,
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
    check_model(recipe, console, model)
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

    check_inputs(recipe, console, model)
    recipe.task.check_service()
    with ray_session(recipe, learner=False), console.status("evaluating"):
        found = evaluate_model(recipe, model)
    for reason in found.unusable:
        print_line(f"set aside: {reason}", console)
    for name, value in found.numbers.items():
        is_count = name in ("dropped", "unusable")
        shown = f"{value:.0f}" if is_count else f"{value:.1%}"
        print_line(f"{label(name):<22} {shown}", console)


@app.command()
def sft(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Fine-tune a model on demonstrations, the task's or yours, and write the folder `sft.output`.

    The learner is that of `axpo train`.
    """
    from axpo.session import ray_session
    from axpo.sft.check import check_stages
    from axpo.sft.fine_tune import fine_tune

    loaded = checked_recipe(recipe, overrides, console)
    print_set_aside(check_stages(loaded), console)
    with ray_session(loaded, workers=False):
        folder = fine_tune(loaded, console)
    print_line(f"model {folder}", console)


@model_app.command()
def build(recipe: RecipeFile = Path("embedded"), overrides: Overrides = None) -> None:
    """Build the embedded model from nothing.

    That is: tokenizer, random weights, fine-tuning in stages, measurements, model card.
    """
    from axpo.config import load_recipe
    from axpo.sft.embedded_model import build_embedded

    # The recipe's model does not exist yet, so its inputs are not checked.
    folder = build_embedded(load_recipe(recipe, overrides or ()), console)
    print_line(f"model {folder}", console)


@model_app.command()
def measure(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Measure a recipe's model on its held-out questions, and write held_out.json beside it.

    Runs of that recipe then take their start numbers from the file, if nothing has changed.
    """
    from axpo.evaluation.held_out import evaluate_model
    from axpo.evaluation.known import write_known
    from axpo.session import ray_session

    loaded = checked_recipe(recipe, overrides, console)
    loaded.task.check_service()
    with ray_session(loaded, learner=False), console.status("evaluating"):
        found = evaluate_model(loaded, loaded.model)
    print_line(f"written {write_known(loaded, loaded.task.load(), found)}", console)


def main() -> None:
    """Run the command; print an AxpoError as one line and exit with code 2."""
    try:
        app()
    except AxpoError as error:
        _refuse(error)
    except (ImportError, OSError, RuntimeError) as error:
        from axpo.set_up import why_unfinished

        reason = why_unfinished(error)
        if reason is None:
            raise
        _refuse(AxpoError(f"{reason}: `axpo setup` finishes this environment, once"))


def _refuse(error: AxpoError) -> None:
    # An AxpoError is printable already.
    line = Text.assemble(("error", "red"), f" {error}")
    Console(stderr=True, soft_wrap=True).print(line)
    sys.exit(2)


if __name__ == "__main__":
    main()
