"""`axpo check`: validate a recipe, and end with a verdict and a short table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from axpo.arguments import Overrides, RecipeFile
from axpo.errors import AxpoError
from axpo.inputs import print_lines, print_set_aside, print_warnings

if TYPE_CHECKING:
    from axpo.config import Recipe

Nodes = Annotated[
    tuple[int, int, float] | None,
    typer.Option(
        metavar="NODES GPUS CPUS",
        help="place the run on NODES nodes, each with GPUS and CPUS. Default: what it needs",
    ),
]
SERVICE_S = 10.0
"""Seconds in which a judge must answer."""

console = Console()


def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpu_memory: Annotated[
        float, typer.Option(metavar="GIB", help="memory of one GPU, for the estimate's warnings")
    ] = 80,
    nodes: Nodes = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="decode every image of the data; goes on where a check was stopped"
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="print the resolved recipe first, every field of it")
    ] = False,
) -> None:
    """Validate a recipe and its model, say where it stands, estimate its memory. Start nothing.

    The last lines are a table and the verdict. Variants of your own (package.module:name) are
    imported and checked, too. What a model folder must have is in docs/models.md.
    """
    from axpo.config import load_recipe
    from axpo.model_folder import check_models
    from axpo.placement import placement_lines
    from axpo.sft.check import check_stages
    from axpo.trackers import check_all

    loaded = load_recipe(recipe, overrides or ())
    check_all(loaded.logging.trackers)
    placement = placement_lines(loaded, nodes)
    report = check_models(loaded)
    set_aside = [*loaded.check_inputs(report.fits), *check_stages(loaded)]
    silent = _silent_service(loaded)
    if images:
        # What a header says is said again when the image is decoded.
        set_aside += [reason for reason in _decode_images(loaded) if reason not in set_aside]
    memory, doubts = _memory(loaded, gpu_memory)
    if full:
        _print_recipe(loaded)
    for lines in (report.lines, placement, memory):
        print_lines(lines, console)
    print_warnings([*report.warnings, *silent], console)
    print_set_aside(set_aside, console)
    print_warnings(doubts, console)
    warnings = len(report.warnings) + len(silent) + len(set_aside) + len(doubts)
    run = [("recipe", f"{loaded.name}, {loaded.algorithm}"), ("model", _model(loaded, memory))]
    _print_table([*run, *_rows(placement, memory, len(set_aside), warnings)])
    console.print(f"[green]ok[/] {escape(loaded.describe())}", highlight=False, soft_wrap=True)


def _print_recipe(recipe: Recipe) -> None:
    import yaml
    from rich.syntax import Syntax

    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    console.print(Syntax(resolved, "yaml", background_color="default"))


def _memory(recipe: Recipe, gpu_memory: float) -> tuple[list[str], list[str]]:
    """Return the lines of the memory estimate, and its warnings."""
    from axpo.memory import estimate, read_config, shape_of

    # Without a network and without the model on disk its size is not known.
    config = read_config(recipe.model)
    if config is None:
        return [], [f"no memory estimate: the hub does not give {recipe.model}'s config.json"]
    return estimate(recipe, shape_of(config), gpu_memory)


def _rows(
    placement: Sequence[str], memory: Sequence[str], set_aside: int, warnings: int
) -> Iterable[tuple[str, str]]:
    """Yield the rows of the table: the first words of what was said above."""
    for line in memory:
        name, _, value = line.partition(": ")
        # Only the totals: what they consist of is above.
        if name.startswith(("learner, each", "engine, each")):
            yield name, value.partition(" (")[0]
    # Which of the two it is depends on --nodes.
    nodes = placement[0].removeprefix("needs ").removeprefix("placement on ")
    yield "nodes", nodes.removesuffix(":")
    if set_aside:
        yield "set aside", f"{set_aside} rows"
    yield "warnings", f"{warnings}, above" if warnings else "none"


def _model(recipe: Recipe, memory: Sequence[str]) -> str:
    """Return which model it is, with its size if that is known."""
    sizes = [line.removeprefix("model: ") for line in memory if line.startswith("model: ")]
    return ", ".join([recipe.model, *sizes])


def _print_table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    console.print()
    print_lines((f"{name:<{width}}  {value}" for name, value in rows), console)


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
        print_lines([f"images of {source}: {done:,} of {rows:,} rows"], console)

    return recipe.task.check_images(notes, tell) + decode_stages(recipe, notes, tell)
