"""`axpo data decontaminate`: which training rows are questions of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from axpo.inputs import print_line, print_warnings
from axpo.texts import printable

if TYPE_CHECKING:
    from axpo.evaluation.decontaminate import Found
    from axpo.evaluation.trained import Trained

app = typer.Typer(help="Training data.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `decontaminate` a command of its own: typer would fold a single one into the group."""


@app.command()
def decontaminate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="its training data is compared")],
    against: Annotated[
        Path, typer.Option(metavar="DIR", help="the benchmarks' files, as `axpo eval --data`")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="the report; must not exist")] = Path(
        "data/contaminated.jsonl"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change one field of the recipe"),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="paper: its nine benchmarks")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="names with commas, or package.module:Name. Default: --suite paper"),
    ] = None,
    min_words: Annotated[
        int, typer.Option(min=1, help="questions of fewer words are compared by their pictures")
    ] = 1,
) -> None:
    """Write which rows of the recipe's training data are questions of the benchmarks, and why.

    A row is one if it has a picture of theirs (the same pixels, or the same picture encoded anew),
    or the text of one of their questions. A recipe leaves these rows out with `without: FILE`
    beside the `path` of its training data. Rows that cannot be read are named and counted, too.
    See docs/data.md.
    """
    from axpo.config import load_recipe
    from axpo.evaluation.decontaminate import Index, questions_of, write_report
    from axpo.evaluation.trained import trained_on

    console = Console()
    trained = trained_on(load_recipe(recipe, overrides or ()))
    with console.status("reading the benchmarks"):
        asked = questions_of(suite, benchmark, against)
    bar = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*bar, console=console, transient=True) as progress:
        shown = progress.add_task("")

        def tell(what: str, done: int, total: int) -> None:
            progress.update(shown, description=escape(printable(what)), completed=done, total=total)

        index = Index(asked, tell, min_words)
        found = write_report(trained, index, out, tell)
    print_warnings((f"compared by its text alone: {fault}" for fault in index.unread), console)
    _print_counts(trained, found, console)
    print_line(f"report {out}", console)


def _print_counts(trained: Sequence[Trained], found: Sequence[Found], console: Console) -> None:
    table = Table()
    table.add_column("source")
    for name in ("rows", "same picture", "alike picture", "same text", "bad"):
        table.add_column(name, justify="right")
    for part, one in zip(trained, found, strict=True):
        counts = [one.removed[why] for why in ("same picture", "alike picture", "same text")]
        numbers = [f"{count:,}" for count in (one.rows, *counts, one.bad)]
        table.add_row(Text(printable(part.source.path)), *numbers)
    console.print(table)
