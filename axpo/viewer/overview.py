"""The first pages: the runs, their curves over each other, and one run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from axpo.record.summary import before_after, duration, label
from axpo.report.curves import charts, overlaid_charts, points
from axpo.report.page import rates, tile
from axpo.viewer.site import Site
from axpo.viewer.watched import Watched

SHOWN = 40
"""Characters of a value of a recipe."""


def overview(site: Site, request: Request) -> Response:
    """Return the page of all runs; of a single run its own page."""
    if len(site.runs) == 1:
        return RedirectResponse("/r/0", 303)
    signature = "-".join(run.signature() for run in site.runs)
    drawn, undrawn = site.memory.get("overlaid", signature, lambda: _overlaid(site.runs))
    return site.page(
        request,
        "overview.html.jinja",
        None,
        rows=[_row(run) for run in site.runs],
        charts=drawn,
        undrawn=undrawn,
        differences=_differences(site.runs),
    )


def run_page(site: Site, request: Request) -> Response:
    """Return the page of one run."""
    run = site.run_of(request)
    metrics, summary = run.metrics(), run.summary()
    drawn, undrawn = run.remember("charts", lambda: _charts(metrics))
    return site.page(
        request,
        "run.html.jinja",
        run,
        facts=_facts(run, metrics, summary),
        tiles=[tile(rate) for rate in rates(metrics, summary)],
        charts=drawn,
        undrawn=undrawn,
    )


def _overlaid(runs: Sequence[Watched]) -> tuple[list[str], list[str]]:
    """Return the charts of several runs, and which could not be drawn."""
    undrawn: list[str] = []
    return overlaid_charts([(run.name, run.metrics()) for run in runs], undrawn), undrawn


def _charts(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the charts of a run, and which could not be drawn."""
    undrawn: list[str] = []
    return charts(metrics, undrawn), undrawn


def _facts(
    run: Watched, metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None
) -> list[str]:
    """Return what a run is, and what it cost or where it stands."""
    facts = [word.upper() for word in (run.recipe.get("algorithm"),) if isinstance(word, str)]
    if summary:
        facts += [f"{summary['steps']} steps", duration(summary["seconds"])]
        facts.append(f"{summary['tokens']:,} tokens generated")
    elif metrics:
        facts.append(f"step {metrics[-1]['step']} of {run.recipe.get('steps', '?')}")
    groups, _ = run.catalog.size()
    return [*facts, f"{groups:,} groups kept"]


def _row(run: Watched) -> dict[str, Any]:
    """Return what the table of runs says of one."""
    metrics, summary = run.metrics(), run.summary()
    rates_of_run = before_after(summary or {})
    held_out = points(metrics, "eval/pass1")
    training = points(metrics, "pass1")
    if not rates_of_run and held_out:
        rates_of_run = [(label("pass1"), held_out[0][1], held_out[-1][1])]
    return {
        "run": run,
        "state": run.state(),
        "step": metrics[-1]["step"] if metrics else 0,
        "steps": run.recipe.get("steps", "?"),
        "training": f"{training[-1][1]:.1%}" if training else "–",
        "before": _percent(rates_of_run[0][1]) if rates_of_run else "–",
        "after": _percent(rates_of_run[0][2]) if rates_of_run else "–",
        "groups": run.catalog.size()[0],
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _differences(runs: Sequence[Watched]) -> list[tuple[str, list[str]]]:
    """Return the fields in which recipes differ, with the value of each run."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    names: dict[str, None] = {}
    for recipe in flat:
        names.update(dict.fromkeys(recipe))
    rows = []
    for name in names:
        values = [recipe.get(name, "–") for recipe in flat]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _flat(recipe: Mapping[str, Any], prefix: str = "", depth: int = 8) -> list[tuple[str, str]]:
    """Return `section.field` and the value of each field of a recipe, as text."""
    found = []
    for name, value in recipe.items():
        if isinstance(value, dict) and depth:
            found += _flat(value, f"{prefix}{name}.", depth - 1)
        else:
            text = str(value)
            found.append((f"{prefix}{name}", text[:SHOWN] + " …" * (len(text) > SHOWN)))
    return found
