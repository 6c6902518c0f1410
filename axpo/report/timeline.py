"""When each rollout of a step ran: one picture that shows at a glance who waits for whom.

Every row is a rollout or a continuation, with its waits for tools inside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, LEFT, ROW, GAP, AXIS = 1240, 8, 5, 1, 22
"""Pixels."""
ROWS_SHOWN = 160
"""More rows than this are thinned out evenly."""
AXIS_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the axis has a time, as shares of the step."""
OUTER = {0.0: "x first", 1.0: "x last"}
"""Classes of the times at the ends of the axis."""

Bar = Mapping[str, Any]
"""One of `axpo.record.timeline.bars`."""

KEYS = (
    '<span class="key"><i class="run"></i>rollout</span>'
    '<span class="key"><i class="fork"></i>fork</span>'
    '<span class="key"><i class="tool"></i>waits for a tool</span>'
)


@dataclass(frozen=True)
class Scale:
    """Maps the seconds of a step, 0 to `end`, to the width of the picture."""

    end: float

    def length(self, seconds: float) -> float:
        """Return how many pixels some seconds are."""
        return seconds / self.end * (WIDTH - 2 * LEFT)

    def rectangle(self, y: int, span: tuple[float, float], kind: str) -> str:
        """Return the markup of a span of seconds in the row at `y`."""
        start, stop = span
        x = LEFT + self.length(start)
        # Half a pixel can still be seen.
        width = max(self.length(stop - start), 0.5)
        return f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}"/>'


def picture(timeline: Sequence[Bar], step: int) -> str:
    """Return an SVG figure of a step; "" if it has no bars.

    Rows are in order of their workers, then of their starts. Continuations and waits for tools have
    colours of their own.
    """
    if not timeline:
        return ""
    every = -(-len(timeline) // ROWS_SHOWN)  # rounded up
    rows = sorted(timeline, key=lambda bar: (bar["worker"], bar["start"]))[::every]
    scale = Scale(max(bar["stop"] for bar in timeline) or 1.0)
    height = len(rows) * (ROW + GAP) + AXIS
    marks = "".join(_row(bar, i * (ROW + GAP), scale) for i, bar in enumerate(rows))
    thinned = f", every {every}th shown" if every > 1 else ""
    return (
        '<figure class="chart timeline"><figcaption>'
        f"<h3>Rollouts of step {step}</h3><p>{len(timeline)} rollouts and forks{thinned}"
        f'</p><p class="keys">{KEYS}</p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline">'
        f"{marks}{_axis(scale, height)}</svg></figure>"
    )


def _row(bar: Bar, y: int, scale: Scale) -> str:
    """Return one row, with what it is for the pointer that rests on it."""
    title = f"{bar['question']}, rollout {bar['rollout']}"
    kind = "run"
    if bar["fork"] is not None:
        title += f", fork {bar['fork']}"
        kind = "fork"
    own = scale.rectangle(y, (bar["start"], bar["stop"]), kind)
    waits = "".join(scale.rectangle(y, (start, stop), "tool") for start, stop in bar["tools"])
    return f"<g><title>{escape(title)}</title>{own}{waits}</g>"


def _axis(scale: Scale, height: int) -> str:
    """Return the times below the rows."""
    marks = []
    for share in AXIS_SHARES:
        x = LEFT + share * (WIDTH - 2 * LEFT)
        seconds = share * scale.end
        # The outer ones would be cut off in their middle.
        place = OUTER.get(share, "x")
        marks.append(f'<text x="{x:.0f}" y="{height - 6}" class="{place}">{seconds:.1f} s</text>')
    return "".join(marks)
