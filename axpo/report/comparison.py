"""A page and a file about what two evaluations of the same questions have in common, and not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.compare import Change, Comparison
from axpo.evaluation.intervals import Estimate
from axpo.evaluation.results import Row
from axpo.record.files import replace_file
from axpo.report.evaluation import sample_view, short, templates
from axpo.texts import clean

LISTED = 300
"""Changed questions of a benchmark that the page shows; comparison.json names all."""


def write_comparison(first: Path, second: Path, found: Comparison, folder: Path) -> Path:
    """Write `comparison.json` and `comparison.html`, and return the page.

    Args:
        first: the folder of A.
        second: the folder of B.
        found: what their comparison says.
        folder: where both are written.

    Raises:
        AxpoError: one of them is there already, or the disk is full.
    """
    numbers, page = folder / "comparison.json", folder / "comparison.html"
    for file in (numbers, page):
        if file.exists():
            raise AxpoError(f"{file}: exists; choose another --out")
    template = templates().get_template("comparison.html.jinja")
    html = template.render(
        first=first,
        second=second,
        warnings=found.warnings,
        table=_table(found),
        parts=_parts(found),
    )
    both = {"first": str(first), "second": str(second), **found.to_json()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(numbers, json.dumps(both, indent=2) + "\n")
        replace_file(page, clean(html))
    except OSError as error:
        raise AxpoError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return page


def _table(found: Comparison) -> dict[str, Any]:
    rows = [
        [
            one.title,
            str(one.questions),
            f"{100 * one.first:.1f}",
            f"{100 * one.second:.1f}",
            _points(one.difference),
            str(one.better),
            str(one.worse),
            f"{one.p_value:.3g}",
            str(one.only_one),
        ]
        for one in found.differences
    ]
    if found.average is not None:
        rows.append(["Average", "", "", "", _points(found.average), "", "", "", ""])
    head = ["", "Questions", "A", "B", "B − A", "Better", "Worse", "McNemar p", "In one only"]
    return {"head": head, "rows": rows}


def _parts(found: Comparison) -> list[dict[str, Any]]:
    """Return the changed questions of each benchmark, the lost ones first."""
    parts = []
    for one in found.differences:
        changes = [change for change in found.changes if change.benchmark == one.benchmark]
        changes.sort(key=lambda change: change.better)
        rows = [_change(change) for change in changes[:LISTED]]
        if rows:
            cut = len(changes) > LISTED
            parts.append({"title": one.title, "rows": rows, "count": len(changes), "cut": cut})
    return parts


def _change(change: Change) -> dict[str, Any]:
    return {
        "text": short(change.text),
        "accepted": short(" · ".join(change.accepted)),
        "better": change.better,
        "first": _samples(change.first),
        "second": _samples(change.second),
    }


def _samples(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [sample_view(row) for row in rows]


def _points(estimate: Estimate) -> str:
    value, low, high = (100 * one for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")
