"""When each rollout of a step ran: one picture, a row a rollout, waits for tools inside it. Shows at a glance who waits for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, ROW, GAP, AXIS = 1240, 8, 5, 1, 22
"""Pixels."""
ROWS_SHOWN = 160
"""More rows than this are thinned out evenly."""


def picture(timeline: Sequence[Mapping[str, Any]], step: int) -> str:
    """An SVG figure; '' for no bars. Rows by worker, then start; forks and waits for tools in colours of their own."""
    if not timeline:
        return ""
    every = -(-len(timeline) // ROWS_SHOWN)
    rows = sorted(timeline, key=lambda bar: (bar["worker"], bar["start"]))[::every]
    end = max(bar["stop"] for bar in timeline) or 1.0
    height = len(rows) * (ROW + GAP) + AXIS

    def rect(y: int, start: float, stop: float, kind: str) -> str:
        x, width = (
            LEFT + start / end * (WIDTH - 2 * LEFT),
            (stop - start) / end * (WIDTH - 2 * LEFT),
        )
        return f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(width, 0.5):.1f}" height="{ROW}"/>'

    marks = []
    for i, bar in enumerate(rows):
        y = i * (ROW + GAP)
        title = f"{bar['question']}, rollout {bar['rollout']}" + (
            "" if bar["fork"] is None else f", fork {bar['fork']}"
        )
        inside = "".join(rect(y, a, b, "tool") for a, b in bar["tools"])
        kind = "run" if bar["fork"] is None else "fork"
        marks.append(
            f"<g><title>{escape(title)}</title>{rect(y, bar['start'], bar['stop'], kind)}{inside}</g>"
        )
    axis = "".join(
        f'<text x="{LEFT + share * (WIDTH - 2 * LEFT):.0f}" y="{height - 6}" class="x">{share * end:.1f} s</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    thinned = f", every {every}th shown" if every > 1 else ""
    return (
        f'<figure class="chart timeline"><figcaption><h3>Rollouts of step {step}</h3><p>{len(timeline)} rollouts and forks{thinned}'
        '</p><p class="keys"><span class="key"><i class="run"></i>rollout</span><span class="key"><i class="fork"></i>fork</span>'
        '<span class="key"><i class="tool"></i>waits for a tool</span></p></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline">{"".join(marks)}{axis}</svg></figure>'
    )
