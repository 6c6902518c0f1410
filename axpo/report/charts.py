"""Small SVG charts for the report: a line chart and stacked columns over training steps. Pure functions to markup.

Colours are the page's CSS variables `--s1` to `--s8`; each chart carries its points as JSON for the page's hover readout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 214
LEFT, RIGHT, TOP, BOTTOM = 46, 428, 10, 178
SMOOTHING = 0.7
"""Weight of the past in the exponential moving average."""
MOST_COLUMNS = 60

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line: (step, value) in order of steps. `measured` series are sparse: marked points, not smoothed."""

    label: str
    points: Points
    color: int
    measured: bool = False


@dataclass(frozen=True)
class Frame:
    """Plot area: data ranges onto pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x, self.y
        return LEFT + (x - x0) / ((x1 - x0) or 1) * (RIGHT - LEFT), BOTTOM - (y - y0) / (
            (y1 - y0) or 1
        ) * (BOTTOM - TOP)

    def path(self, points: Points) -> str:
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in points)


def line_chart(title: str, note: str, series: Sequence[Series], *, percent: bool = False) -> str:
    """A figure of all series that have points; '' where none has. Raw values are faint behind their moving average."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return ""
    form = _percent if percent else number
    xs, ys = [x for s in drawn for x, _ in s.points], [y for s in drawn for _, y in s.points]
    y_ticks = ticks(min(0.0, *ys), max(max(ys), 0.1 if percent else 1e-9))
    frame = Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    marks = []
    for s in drawn:
        color = f"var(--s{s.color})"
        smooth = not s.measured and len(s.points) >= 8
        if smooth:
            marks.append(f'<path d="{frame.path(s.points)}" stroke="{color}" class="raw"/>')
        marks.append(
            f'<path d="{frame.path(smoothed(s.points) if smooth else s.points)}" stroke="{color}" class="line"/>'
        )
        if s.measured or len(s.points) == 1:
            places = [frame.at(x, y) for x, y in s.points]
            marks += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in places
            ]
    return _figure(title, note, "".join(marks), frame, y_ticks, form, drawn)


def stacked_chart(title: str, note: str, series: Sequence[Series], unit: str = " s") -> str:
    """Columns by step, the series on top of each other; neighbouring steps are averaged beyond 60 columns."""
    drawn = [s for s in series if s.points]
    if not drawn:
        return ""
    values = [dict(s.points) for s in drawn]
    steps = sorted({x for s in drawn for x, _ in s.points})
    size = math.ceil(len(steps) / MOST_COLUMNS)
    bins = [steps[i : i + size] for i in range(0, len(steps), size)]
    heights = [[sum(v.get(x, 0.0) for x in b) / len(b) for v in values] for b in bins]
    y_ticks = ticks(0.0, max(max(map(sum, heights)), 1e-9))
    frame = Frame((steps[0], steps[-1]), (0.0, y_ticks[-1]))
    slot = (RIGHT - LEFT) / len(bins)
    marks = []
    for column, parts in enumerate(heights):
        base = 0.0
        for s, height in zip(drawn, parts, strict=True):
            top, bottom = frame.at(0, base + height)[1], frame.at(0, base)[1]
            marks.append(
                f'<rect x="{LEFT + column * slot:.1f}" y="{top:.1f}" width="{max(slot - 1.5, 0.8):.1f}" '
                f'height="{bottom - top:.1f}" fill="var(--s{s.color})"/>'
            )
            base += height
    return _figure(
        title, note, "".join(marks), frame, y_ticks, lambda v: f"{number(v)}{unit}", drawn
    )


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Exponential moving average that starts unbiased."""
    average, weight, out = 0.0, 0.0, []
    for x, y in points:
        average = SMOOTHING * average + (1 - SMOOTHING) * y
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        out.append((x, average / weight))
    return out


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` round values that enclose [low, high]."""
    rough = (high - low) / (most - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Three significant digits: '0', '0.125', '12.5k', '3e-4'."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e-3:
        return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _figure(
    title: str,
    note: str,
    marks: str,
    frame: Frame,
    y_ticks: Sequence[float],
    form: Callable[[float], str],
    series: Sequence[Series],
) -> str:
    grid = []
    for value in y_ticks:
        y = frame.at(0, value)[1]
        grid.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" class="grid"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" class="y">{form(value)}</text>')
    inside = [t for t in ticks(*frame.x) if frame.x[0] <= t <= frame.x[1] and t == int(t)] or [
        frame.x[0]
    ]
    for value in inside:
        grid.append(
            f'<text x="{frame.at(value, 0)[0]:.1f}" y="{BOTTOM + 15}" class="x">{value:g}</text>'
        )
    data: Mapping[str, object] = {
        "x": frame.x,
        "plot": [LEFT, RIGHT, WIDTH],
        "series": [[[x, form(y)] for x, y in s.points] for s in series],
    }
    keys = "".join(
        f'<span class="key"><i style="background:var(--s{s.color})"></i>{escape(s.label)} <b>{form(s.points[-1][1])}</b></span>'
        for s in series
    )
    return (
        f'<figure class="chart" data-chart="{escape(json.dumps(data))}">'
        f"<figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p></figcaption>"
        f'<div class="keys">{keys}<span class="at"></span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(grid)}{marks}'
        f'<path class="cross" d="M0 {TOP}V{BOTTOM}"/>'
        f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 6}" class="x">training step</text></svg></figure>'
    )
