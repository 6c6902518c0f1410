"""The pages about the work itself: when each rollout ran, and what went wrong."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from axpo.record.files import by_step
from axpo.record.run import RunDirectory
from axpo.record.set_aside import HELD_OUT
from axpo.report.timeline import picture
from axpo.report.trace import trace
from axpo.texts import one_line
from axpo.viewer.site import Site, number
from axpo.viewer.watched import Watched

SLOWEST = 12
"""Rollouts that the table under the timeline names."""
SHOWN = 500
"""Reasons in a list, and characters of an event."""


def timeline(site: Site, request: Request) -> Response:
    """Return when the rollouts of a step ran."""
    run = site.run_of(request)
    steps, step, bars = _timed(run, request)
    place = steps.index(step) if step is not None else 0
    return site.page(
        request,
        "timeline.html.jinja",
        run,
        step=step,
        steps=steps,
        before=steps[place - 1] if place else None,
        after=steps[place + 1] if place + 1 < len(steps) else None,
        picture=picture(bars, step) if step is not None else "",
        slowest=_slowest(bars),
    )


def step_trace(site: Site, request: Request) -> Response:
    """Return the same as a Chrome trace, a file to download."""
    _, step, bars = _timed(site.run_of(request), request)
    headers = {"Content-Disposition": f'attachment; filename="trace_{step or 0}.json"'}
    return Response(trace(bars, step or 0), media_type="application/json", headers=headers)


def faults(site: Site, request: Request) -> Response:
    """Return what was set aside, what could not be read, and what went wrong."""
    run = site.run_of(request)
    return site.page(
        request,
        "faults.html.jinja",
        run,
        set_aside=_set_aside(run),
        unreadable=run.catalog.unreadable()[:SHOWN],
        counts=run.catalog.happened_counts(),
        happened=[(one, one_line(one.fields, SHOWN)) for one in run.catalog.happened()],
    )


def _timed(run: Watched, request: Request) -> tuple[list[int], int | None, list[dict[str, Any]]]:
    """Return the steps with a timeline, the one that a request asks for, and its bars."""
    steps = [step for step, _ in by_step(run.path / "timeline", ".json")]
    asked = number(dict(request.query_params), "step", steps[-1] if steps else 0)
    # The nearest one that there is.
    step = min(steps, key=lambda one: abs(one - asked)) if steps else None
    # A directory of its own: it notes what it cannot read, and this one lives for days.
    bars = RunDirectory.open(run.path).timeline(step) if step is not None else []
    return steps, step, bars


def _set_aside(run: Watched) -> list[tuple[str, list[str]]]:
    """Return the questions that could not be asked: of training, and held out."""
    training = run.catalog.reasons("rollouts.jsonl", "unusable")
    held_out = run.catalog.reasons("events.jsonl", HELD_OUT)
    return [("training", training[:SHOWN]), ("held-out", held_out[:SHOWN])]


def _slowest(bars: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rollouts that took longest, with the share of their time that tools took."""
    rows = []
    for bar in sorted(bars, key=lambda bar: bar["start"] - bar["stop"])[:SLOWEST]:
        seconds = bar["stop"] - bar["start"]
        waited = sum(stop - start for start, stop in bar["tools"])
        share = waited / seconds if seconds > 0 else 0.0
        rows.append({**bar, "seconds": seconds, "share": share})
    return rows
