"""One self-contained page about a run: what changed, the curves, and rollouts a person can read.

Everything is inline (SVG, CSS, a little JavaScript, images as data URIs): the file can be mailed,
and opens without a network. Of a run that was killed the page shows what it wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from axpo.record.files import read_text, replace_file
from axpo.record.run import RunDirectory
from axpo.record.set_aside import read_set_aside
from axpo.record.summary import before_after, duration, label, read_summary
from axpo.report.curves import charts, points
from axpo.report.images import Images
from axpo.report.rollout_view import SURE, Record, group_view
from axpo.report.timeline import picture
from axpo.texts import clean

GROUPS_SHOWN = 6
MAX_WORD = 200
"""Characters of a field of the recipe."""
SET_ASIDE_SHOWN = 50
"""Questions that could not be asked, of which the page says why."""
TILES = ("pass1", "pass4", "tool_use", "tool_all_wrong_rate")
"""The held-out rates of a run that did not end."""
ROUNDING = 0.05
"""A smaller change, in points, is shown as 0.0 and is neither good nor bad."""

Rate = tuple[str, float | None, float]
"""Label, start and end; a start of None was not measured."""


def render(run_dir: str | Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Raises:
        AxpoError: there is no run.
    """
    # jinja2 is slow to import, and only a page that is rendered needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run = RunDirectory.open(run_dir)
    recipe, metrics, summary = run.recipe(), run.metrics(), read_summary(run.path)
    # What a policy wrote is shown as text, never as markup; a name that the template misspells
    # fails instead of showing nothing.
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    groups = [group_view(record) for record in _chosen_groups(run)]
    html = templates.get_template("page.html.jinja").render(
        name=_word(recipe, "name") or run.path.resolve().name,
        run=run.path.resolve().name,
        algorithm=_word(recipe, "algorithm").upper(),
        facts=_facts(metrics, summary),
        recipe=read_text(run.path / "recipe.yaml"),
        tiles=[_tile(rate) for rate in _rates(metrics, summary)],
        charts=charts(metrics, run.unreadable),
        timeline=_timeline(run, metrics),
        set_aside=read_set_aside(run.path),
        SET_ASIDE_SHOWN=SET_ASIDE_SHOWN,
        groups=groups,
        unreadable=run.unreadable,
        images=Images(run.images),
        SURE=SURE,
    )
    out = run.path / "report.html"
    # Half a surrogate pair, in a reason or the name of a metric, is no UTF-8.
    replace_file(out, clean(html))
    return out


def _word(recipe: Record, field: str) -> str:
    """Return a field that is a short text; "" if it is something else."""
    value = recipe.get(field)
    return value[:MAX_WORD] if isinstance(value, str) else ""


def _facts(metrics: Sequence[Record], summary: Record | None) -> list[str]:
    """Return what the run cost, or where it stands."""
    if summary:
        return [
            f"{summary['steps']} steps",
            duration(summary["seconds"]),
            f"{summary['tokens']:,} tokens generated",
        ]
    if metrics:
        return [f"stopped or still running at step {metrics[-1]['step']}"]
    return ["no step finished yet"]


def _timeline(run: RunDirectory, metrics: Sequence[Record]) -> str:
    """Return the picture of the rollouts of the last step that has a timeline."""
    for row in reversed(metrics):
        bars = run.timeline(row["step"])
        if bars:
            return picture(bars, row["step"])
    return ""


def _rates(metrics: Sequence[Record], summary: Record | None) -> list[Rate]:
    """Return held-out rates before and after.

    If the run has no summary, they are those of its first and last evaluations.
    """
    rates = before_after(summary or {})
    if rates:
        return rates
    for name in TILES:
        evaluations = points(metrics, f"eval/{name}")
        if evaluations:
            (_, start), (_, end) = evaluations[0], evaluations[-1]
            rates.append((label(name), start, end))
    return rates


def _tile(rate: Rate) -> dict[str, str]:
    """Return a rate as the page shows it."""
    name, start, end = rate
    if start is None:
        before, change, tone = "–", "start not measured", ""
    else:
        points_up = 100 * (end - start)
        before = f"{start:.1%}"
        # With a minus sign of the width of the plus sign.
        change = f"{points_up:+.1f} points".replace("-", "−")
        tone = _tone(name, points_up)
    return {"name": name, "start": before, "end": f"{end:.1%}", "change": change, "tone": tone}


def _tone(name: str, points_up: float) -> str:
    """Return "good" or "bad" for a change of a rate, "" if it is neither."""
    if abs(points_up) < ROUNDING:
        return ""
    if name.startswith("Pass"):
        return "good" if points_up > 0 else "bad"
    if "wrong" in name:
        return "bad" if points_up > 0 else "good"
    # More use of tools is not better by itself.
    return ""


def _chosen_groups(run: RunDirectory) -> list[Record]:
    """Return the groups that the page shows, the most interesting first.

    They are of evenly spaced steps, the first and the last among them.
    """
    steps = run.group_steps()
    if not steps:
        return []
    count = min(GROUPS_SHOWN, len(steps))
    last = len(steps) - 1
    spaced = sorted({steps[round(i * last / max(count - 1, 1))] for i in range(count)})
    of_each = math.ceil(GROUPS_SHOWN / count)
    chosen: list[Record] = []
    # A run of few steps shows several groups of each.
    for step in spaced:
        chosen += sorted(run.groups(step), key=_interest, reverse=True)[:of_each]
    return sorted(chosen[:GROUPS_SHOWN], key=_interest, reverse=True)


def _interest(record: Record) -> int:
    """Return how much there is to see: most if a continuation was right, then if there is any."""
    continuations: list[Record] = []
    for resample in record["resamples"]:
        continuations += resample["continuations"]
    right = any((continuation["reward"] or 0) > 0 for continuation in continuations)
    return 2 * right + bool(continuations)
