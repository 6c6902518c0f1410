"""The page of what a run printed and what it was started with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from axpo.plain_files import NotPlain, inside, open_plain
from axpo.record.actor_logs import FOLDER
from axpo.record.meta import read_meta
from axpo.record.transcript import FILE as CONSOLE
from axpo.texts import printable
from axpo.viewer.site import Site

TAIL = 200_000
"""Bytes of the end of a file that a page shows."""
_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def logs(site: Site, request: Request) -> Response:
    """Return the end of one of a run's logs, and the start of each of its processes."""
    run = site.run_of(request)
    files = _files(run.path)
    asked = request.query_params.get("file", "")
    # A file of the list, so that no address leads to another one.
    chosen = asked if asked in files else next(iter(files), "")
    text, size = _tail(run.path, chosen) if chosen else ("", 0)
    return site.page(
        request,
        "logs.html.jinja",
        run,
        version=f"{run.version()}.{chosen}.{size}",
        files=files,
        chosen=chosen,
        text=text,
        is_cut=size > TAIL,
        processes=[json.dumps(process, indent=2) for process in read_meta(run.path)],
    )


def _files(run: Path) -> list[str]:
    """Return the logs that a run has, the console's first."""
    found = [CONSOLE] if (run / CONSOLE).is_file() else []
    names = sorted(file.name for file in (run / FOLDER).glob("*") if file.is_file())
    return found + [f"{FOLDER}/{name}" for name in names]


def _tail(run: Path, name: str) -> tuple[str, int]:
    """Return the last lines of a log, and the bytes of all of it."""
    try:
        with open_plain(inside(run, name)) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL, 0))
            text = file.read(TAIL).decode(errors="replace")
    except (OSError, NotPlain) as error:
        return str(error), 0
    if size > TAIL:
        text = text.partition("\n")[2]
    return printable(_COLOUR.sub("", text.replace("\r\n", "\n"))), size
