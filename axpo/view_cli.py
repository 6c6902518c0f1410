"""Commands that show a run: its page, and the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from axpo.arguments import RunFolder, RunFolders
from axpo.errors import AxpoError
from axpo.inputs import print_line

console = Console()

Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="folder of the search indexes. Default: your cache folder"),
]


def report(
    run: RunFolder,
    show: Annotated[
        str,
        typer.Option(
            metavar="WORDS",
            help='only groups that fit, e.g. "is:recovered step:10..20 tool:python red"; '
            "docs/viewer.md has the filters",
        ),
    ] = "",
    groups: Annotated[int, typer.Option(min=0, max=1000, help="groups at most")] = 6,
    order: Annotated[
        str, typer.Option(help="with --show: newest, oldest, longest, best or worst first")
    ] = "newest",
    cache: Cache = None,
) -> None:
    """Write RUN/report.html: curves, and trajectories that a person can read."""
    from axpo.catalog.search import ORDERS
    from axpo.report.page import Choice, render

    if order not in ORDERS:
        raise AxpoError(f"--order {order}: expected one of {', '.join(ORDERS)}")
    page = render(run, Choice(show, groups, order, cache))
    print_line(f"report {page}", console)


def view(
    runs: RunFolders,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="port on this machine. Default: 8600, or a free one"),
    ] = None,
    cache: Cache = None,
) -> None:
    """Show runs in the browser, also while they train: curves, all kept groups, faults.

    The pages are served on this machine only, to whoever has the address with its token.
    """
    from axpo.viewer.serve import serve

    def tell(address: str) -> None:
        print_line(f"open {address}", console)
        console.print("end with Ctrl-C", highlight=False)

    serve(runs, port, cache, tell)
