"""What all pages share: the runs, the templates, and how a request names a run or a group."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import axpo.report
from axpo.catalog.search import MARKS, Key, Listed
from axpo.errors import AxpoError
from axpo.report.rollout_view import SURE
from axpo.texts import clean
from axpo.viewer.following import Follower
from axpo.viewer.watched import Memory, Watched

HERE = Path(__file__).parent
SEEN = "x-axpo-seen"
"""Header of a request that asks only for what is new: the version that the browser shows."""


class NotThere(Exception):
    """A request names a run, a group or an image that is not there; one line."""


class Site:
    """The runs of a viewer, and its templates."""

    def __init__(self, runs: Sequence[Watched], follower: Follower) -> None:
        self.runs, self.follower = runs, follower
        self.memory = Memory()
        # What a policy wrote is shown as text, never as markup; a name that a template misspells
        # fails instead of showing nothing.
        folders = [HERE / "templates", Path(axpo.report.__file__).parent]
        self.templates = Environment(
            loader=FileSystemLoader(folders),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(marked=marked, clock=clock, signed=signed)
        self.templates.globals.update(runs=runs, SURE=SURE)

    def page(self, request: Request, template: str, run: Watched | None, **shown: Any) -> Response:
        """Return a page, or 204 if the browser has this version already.

        Args:
            request: what was asked.
            template: its file.
            run: the run of the page; None for a page about all runs.
            shown: what the template needs.
        """
        context = self.frame(run) | shown
        if request.headers.get(SEEN) == context["version"]:
            return Response(status_code=204)
        html = self.templates.get_template(template).render(context)
        # Half a surrogate pair, in the name of a metric, is no UTF-8.
        return HTMLResponse(clean(html))

    def frame(self, run: Watched | None) -> dict[str, Any]:
        """Return what stands around every page."""
        self.follower.ask()
        about = self.runs if run is None else [run]
        unread = [one.unread() for one in about]
        return {
            "run": run,
            "images": run.pictures if run else None,
            "version": "-".join(one.version() for one in about),
            "is_live": any(one.state() == "running" for one in about),
            "unread": sum(missing for missing, _ in unread),
            "files": sum(files for _, files in unread),
        }

    def run_of(self, request: Request) -> Watched:
        """Return the run that an address names."""
        return self.run(request.path_params["run"])

    def run(self, index: int) -> Watched:
        """Return a run by its index; raise NotThere if there is none."""
        if not 0 <= index < len(self.runs):
            raise NotThere(f"There is no run {index}.")
        return self.runs[index]

    def group(self, run: Watched, key: Key) -> tuple[Listed, dict[str, Any]]:
        """Return a group and its record; raise NotThere if there is none."""
        listed = run.catalog.get(key)
        if listed is None:
            raise NotThere(f"{run.name} has no group {key.place} of step {key.step}, {key.source}.")
        try:
            return listed, run.catalog.record(listed)
        except AxpoError as error:
            raise NotThere(str(error)) from None


def number(given: Mapping[str, str], name: str, default: int, most: int = 10**9) -> int:
    """Return a whole number from 0 to `most` of a request; the default if it has none."""
    text = given.get(name, "")
    # Python refuses to read numbers of thousands of digits.
    is_number = text.isascii() and text.isdecimal() and len(text) < 12
    return min(int(text), most) if is_number else default


def marked(excerpt: str) -> Markup:
    """Return an excerpt of the search with what was found marked."""
    shown = str(escape(excerpt))
    return Markup(shown.replace(MARKS[0], "<mark>").replace(MARKS[1], "</mark>"))


def clock(seconds: float) -> str:
    """Return a time as people of this machine write it; "" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def signed(value: float) -> str:
    """Return a number with its sign, of the same width."""
    return f"{value:+.2f}".replace("-", "−")
