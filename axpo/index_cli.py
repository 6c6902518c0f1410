"""`axpo index build`: the local index behind the tools `search` and `image_search`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from axpo.errors import AxpoError
from axpo.inputs import print_line

if TYPE_CHECKING:
    from tool_server.search.index import Manifest

app = typer.Typer(help="The local search index.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `build` a command of its own: typer would fold a single one into the group."""


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
    """Index PATH for the tool `search`, or for `image_search` if its rows are captioned images.

    Nothing is done if nothing changed since the last time.

    Rows of JSONL are {"text": ..., "title"?, "url"?, "id"?}, or
    {"file": "a.png", "caption": ..., "title"?, "url"?, "id"?}.
    """
    from axpo.shipped import package_path

    # The index library is not needed for `axpo --help`.
    from tool_server.search.build import build, default_out
    from tool_server.search.corpus import CorpusError

    console = Console()
    path = package_path(path)
    folder = out or default_out(path)
    started = time.monotonic()
    bar = TextColumn("indexing"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with Progress(*bar, console=console, transient=True) as progress:
            task = progress.add_task("indexing", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            manifest, built = build(path, folder, show)
    except (CorpusError, OSError) as error:
        raise AxpoError(str(error)) from None
    state = f"built in {time.monotonic() - started:.1f} s" if built else "up to date"
    line = f"index {folder}: {_contents(manifest)}, {state}"
    print_line(line, console)


def _contents(manifest: Manifest) -> str:
    megabytes = sum(size for size, _ in manifest.files.values()) / 1e6
    kind = "documents" if manifest.kind == "texts" else "captioned images"
    return f"{manifest.documents:,} {kind}, {megabytes:.1f} MB"
