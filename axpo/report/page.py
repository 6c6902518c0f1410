"""One self-contained page about a run: what changed, the curves, and rollouts a person can read.

Everything is inline (SVG, CSS, a little JavaScript, images as data URIs): the file can be mailed,
and opens without a network. Of a run that was killed the page shows what it wrote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from axpo.record.files import read_text, replace_file
from axpo.record.run import RunDirectory
from axpo.record.set_aside import read_set_aside
from axpo.record.summary import before_after, duration, label, read_summary
from axpo.report.curves import charts, points
from axpo.report.images import Images
from axpo.report.rollout_view import SURE, Record, group_view
from axpo.report.timeline import picture
from axpo.report.trace import trace
from axpo.texts import clean

GROUPS_SHOWN = 6
TRACE = "trace.json"
"""File beside the page: the rollouts of its timeline, for Perfetto."""
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


@dataclass(frozen=True)
class Choice:
    """Which groups a page shows.

    Attributes:
        words: filters and texts (`axpo.catalog.wanted`). Without them the page shows groups of
            evenly spaced steps, those with forks first.
        groups: how many at most.
        order: of `axpo.catalog.search.ORDERS`, if there are words.
        cache: folder of the catalogs. Default: in the user's cache folder.
    """

    words: str = ""
    groups: int = GROUPS_SHOWN
    order: str = "newest"
    cache: Path | None = None


def render(run_dir: str | Path, choice: Choice | None = None) -> Path:
    """Write `report.html` into a run directory and return its path.

    Args:
        run_dir: the run.
        choice: which groups the page shows.

    Raises:
        AxpoError: there is no run, or the choice cannot be read.
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
    records, chosen = _records(run, choice or Choice())
    groups = [group_view(record) for record in records]
    html = templates.get_template("page.html.jinja").render(
        name=_word(recipe, "name") or run.path.resolve().name,
        run=run.path.resolve().name,
        algorithm=_word(recipe, "algorithm").upper(),
        facts=_facts(metrics, summary),
        recipe=read_text(run.path / "recipe.yaml"),
        tiles=[tile(rate) for rate in rates(metrics, summary)],
        charts=charts(metrics, run.unreadable),
        timeline=_timeline(run, metrics),
        set_aside=read_set_aside(run.path),
        SET_ASIDE_SHOWN=SET_ASIDE_SHOWN,
        groups=groups,
        chosen=chosen,
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
    """Return the picture of the rollouts of the last step that has a timeline; write its trace."""
    for row in reversed(metrics):
        bars = run.timeline(row["step"])
        if bars:
            replace_file(run.path / TRACE, trace(bars, row["step"]))
            return picture(bars, row["step"])
    return ""


def rates(metrics: Sequence[Record], summary: Record | None) -> list[Rate]:
    """Return held-out rates before and after.

    If the run has no summary, they are those of its first and last evaluations.
    """
    found = before_after(summary or {})
    if found:
        return found
    for name in TILES:
        evaluations = points(metrics, f"eval/{name}")
        if evaluations:
            (_, start), (_, end) = evaluations[0], evaluations[-1]
            found.append((label(name), start, end))
    return found


def tile(rate: Rate) -> dict[str, str]:
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


def _records(run: RunDirectory, choice: Choice) -> tuple[list[Record], str]:
    """Return the groups of the page, and what it says of how they were chosen."""
    if not choice.words:
        return _spaced_groups(run, choice.groups), ""
    # SQLite is needed by no other page.
    from axpo.catalog.search import Catalog
    from axpo.catalog.wanted import parse

    wanted = parse(choice.words)
    catalog = Catalog(run.path, choice.cache)
    catalog.update()
    found = catalog.find(wanted, choice.order, most=choice.groups)
    records: list[Record] = [catalog.record(one) for one in found.groups]
    # The catalog has read every group, and knows which of them are none.
    run.unreadable += [reason for reason in catalog.unreadable() if reason not in run.unreadable]
    shown = f"{len(records)} of the {found.total:,} groups that fit" if records else "No group fits"
    return records, f"{shown}: {choice.words} ({choice.order} first)."


def _spaced_groups(run: RunDirectory, most: int) -> list[Record]:
    """Return groups of evenly spaced steps, the most interesting first.

    The first and the last step are among them.
    """
    steps = run.group_steps()
    if not steps or most < 1:
        return []
    count = min(most, len(steps))
    last = len(steps) - 1
    spaced = sorted({steps[round(i * last / max(count - 1, 1))] for i in range(count)})
    of_each = math.ceil(most / count)
    chosen: list[Record] = []
    # A run of few steps shows several groups of each.
    for step in spaced:
        chosen += sorted(run.groups(step), key=_interest, reverse=True)[:of_each]
    return sorted(chosen[:most], key=_interest, reverse=True)


def _interest(record: Record) -> int:
    """Return how much there is to see: most if a continuation was right, then if there is any."""
    continuations: list[Record] = []
    for resample in record["resamples"]:
        continuations += resample["continuations"]
    right = any((continuation["reward"] or 0) > 0 for continuation in continuations)
    return 2 * right + bool(continuations)
