"""The first pages: the runs, their curves over each other, and one run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from axpo.record.summary import duration
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
    algorithm = run.recipe.get("algorithm")
    facts = [algorithm.upper()] if isinstance(algorithm, str) else []
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
    training = points(metrics, "pass1")
    # The first rate is the one that says most.
    _, before, after = next(iter(rates(metrics, summary)), ("", None, None))
    return {
        "run": run,
        "state": run.state(),
        "step": metrics[-1]["step"] if metrics else 0,
        "steps": run.recipe.get("steps", "?"),
        "training": _percent(training[-1][1] if training else None),
        "before": _percent(before),
        "after": _percent(after),
        "groups": run.catalog.size()[0],
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _differences(runs: Sequence[Watched]) -> list[tuple[str, list[str]]]:
    """Return the fields in which recipes differ, with the value of each run."""
    flat = [_flat(run.recipe) for run in runs]
    names: dict[str, None] = {}
    for recipe in flat:
        names.update(dict.fromkeys(recipe))
    rows = []
    for name in names:
        values = [recipe.get(name, "–") for recipe in flat]
        if len(set(values)) > 1:
            rows.append((name, [_ends(value) for value in values]))
    return rows


def _ends(value: str) -> str:
    """Return a value without its middle if it is long: paths differ in their ends."""
    half = SHOWN // 2
    return value if len(value) <= SHOWN else f"{value[:half]} … {value[-half:]}"


def _flat(recipe: Mapping[str, Any], prefix: str = "", depth: int = 8) -> dict[str, str]:
    """Return the value of each field of a recipe as text, by `section.field`."""
    found: dict[str, str] = {}
    for name, value in recipe.items():
        if isinstance(value, dict) and depth:
            found |= _flat(value, f"{prefix}{name}.", depth - 1)
        else:
            found[f"{prefix}{name}"] = str(value)
    return found
