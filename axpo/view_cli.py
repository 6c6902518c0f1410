"""Commands that show a run: its page, and the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run directory")]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="folder of the search indexes. Default: your cache folder"),
]


def report(run: RunFolder) -> None:
    """Write RUN/report.html: curves, and trajectories that a person can read."""
    from axpo.report.page import render

    console.print(f"report {render(run)}")


def view(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run directories, or folders of them")
    ],
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
        console.print(f"open {address}", highlight=False, soft_wrap=True)
        console.print("end with Ctrl-C", highlight=False)

    serve(runs, port, cache, tell)
