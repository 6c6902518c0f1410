"""Read the recipe of a command, check what it needs, and print what is doubtful about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from axpo.texts import printable

if TYPE_CHECKING:
    from axpo.config import Recipe
    from axpo.tasks.task import Fits

ROWS_SHOWN = 20
"""Rows that are named if a run sets them aside."""


def check_while_ray_starts(
    recipe: Recipe, console: Console, *further: Callable[[], object]
) -> None:
    """Open the Ray session, and check model and data meanwhile, as `check_inputs` does.

    Args:
        recipe: what is checked.
        console: takes what is doubtful.
        further: checks that come after those, such as that of a judge's service.

    Raises:
        AxpoError: what a check found. The session is closed then.
    """
    from axpo.config import looks_local
    from axpo.session import local_path, start_beside
    from axpo.spans import span

    # Ray's session must not wait for a download.
    if not looks_local(recipe.model):
        local_path(recipe.model)

    def check() -> None:
        with span("checks"):
            check_inputs(recipe, console)
            for one in further:
                one()

    start_beside(check)


def checked_recipe(recipe: Path, overrides: Sequence[str] | None, console: Console) -> Recipe:
    """Return a recipe whose model and data are checked."""
    from axpo.config import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    check_inputs(loaded, console)
    return loaded


def check_inputs(recipe: Recipe, console: Console, model: str | None = None) -> None:
    """Check the model that will be used, or that of the recipe, and the data.

    What is doubtful about them is printed, and which questions a run sets aside.
    """
    print_set_aside(recipe.check_inputs(check_model(recipe, console, model)), console)


def check_model(recipe: Recipe, console: Console, model: str | None = None) -> Fits | None:
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
    print_warnings(report.warnings, console)
    return report.fits


def print_line(line: str, console: Console) -> None:
    """Print a line that may have brackets in it, as paths may, or repeat what a file says."""
    console.print(Text(printable(line)), soft_wrap=True)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines with an indent, each as `print_line` does."""
    for line in lines:
        print_line(f"   {line}", console)


def print_set_aside(reasons: Sequence[str], console: Console) -> None:
    """Print why rows will be set aside, the first of them: all at once would hide the rest."""
    print_warnings((f"set aside in a run: {reason}" for reason in reasons[:ROWS_SHOWN]), console)
    more = len(reasons) - ROWS_SHOWN
    if more > 0:
        print_warnings([f"set aside in a run: {more} more rows"], console)


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print what is doubtful, a line each."""
    for warning in warnings:
        line = Text.assemble(("warning", "yellow"), f" {printable(warning)}")
        console.print(line, soft_wrap=True)
