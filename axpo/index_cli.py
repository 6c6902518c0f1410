"""`axpo index build`: the local index behind the tools `search` and `image_search`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from axpo.errors import AxpoError

app = typer.Typer(help="The local search index.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `build` a command of its own: typer would fold a single one into the group."""


@app.command()
def build(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="JSONL, text file, or a folder of them")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="folder of the index. Default: beside PATH, named PATH.index"
        ),
    ] = None,
) -> None:
    """Index PATH for the tool `search`, or for `image_search` where its rows are captioned images. Does nothing when nothing changed.

    Rows of JSONL are {"text": ..., "title"?, "url"?, "id"?}, or {"file": "a.png", "caption": ..., "title"?, "url"?, "id"?}.
    """
    from tool_server.search.corpus import CorpusError
    from tool_server.search.index import build, default_out

    console = Console()
    folder, started = out or default_out(path), time.monotonic()
    columns = TextColumn("indexing"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("indexing", total=None)
            manifest, built = build(
                path, folder, lambda done, total: progress.update(task, completed=done, total=total)
            )
    except (CorpusError, OSError) as error:
        raise AxpoError(str(error)) from None
    size = sum(size for size, _ in manifest.files.values()) / 1e6
    state = f"built in {time.monotonic() - started:.1f} s" if built else "up to date"
    kind = "documents" if manifest.kind == "texts" else "captioned images"
    console.print(
        f"index {folder}: {manifest.documents:,} {kind}, {size:.1f} MB, {state}",
        highlight=False,
        soft_wrap=True,
    )
