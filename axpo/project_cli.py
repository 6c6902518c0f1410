"""`axpo recipes`, `axpo init` and `axpo setup`: what an installed AXPO brings, and a project of it.

Commands import what they need when they run, so that `axpo --help` is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from axpo.errors import AxpoError
from axpo.inputs import print_line, print_lines

recipes_app = typer.Typer(help="The recipes that come along.")
console = Console()


@recipes_app.callback(invoke_without_command=True)
def list_recipes(context: typer.Context) -> None:
    """List the recipes that come along. Commands take them by name: `axpo train demo`."""
    from axpo.shipped import recipe_names, recipe_summary

    if context.invoked_subcommand is not None:
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name in recipe_names():
        table.add_row(name, recipe_summary(name))
    console.print(table)


@recipes_app.command(name="copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="one of `axpo recipes`")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="must not exist. Default: NAME.yaml"),
    ] = None,
) -> None:
    """Write a copy of a recipe, to change it."""
    from axpo.shipped import known_recipe

    text = known_recipe(name).read_text(encoding="utf-8")
    file = out or Path(f"{name}.yaml")
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(text)
    except FileExistsError:
        raise AxpoError(f"{file}: exists; expected the name of a new file") from None
    except OSError as error:
        raise AxpoError(f"{file}: {error.strerror}") from None
    print_line(f"recipe {file}", console)


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="must not exist, or be empty")],
) -> None:
    """Start a project in FOLDER: a recipe, a sample of data, a tool and a verifier that train."""
    from axpo.starter import write_project

    write_project(folder)
    print_line(f"project {folder}", console)
    print_lines([f"cd {folder}", "axpo check recipe.yaml", "axpo train recipe.yaml"], console)


def setup(
    check: Annotated[
        bool, typer.Option(help="try every part of the stack at the end: a minute or two")
    ] = True,
) -> None:
    """Finish this environment after `pip install`: once, before the first run.

    Beside a CPU build of torch it takes out what is linked against CUDA. It makes the toolbox of
    the `python` tool, and tries every part of the stack.
    """
    from axpo.set_up import check_stack, fit_to_cpu, make_toolbox

    fit_to_cpu()
    typer.echo("setup: installing the toolbox of the python tool")
    make_toolbox()
    if check and check_stack():
        raise typer.Exit(1)
