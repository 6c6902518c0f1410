"""Small SVG charts for the report: a line chart, and stacked columns, over training steps.

These are pure functions to markup. Colours are the page's CSS variables `--s1` to `--s8`. Each
chart carries its points as JSON, for the readout when the pointer moves over it (page script).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 214
"""The whole chart, pixels."""
LEFT, RIGHT, TOP, BOTTOM = 46, 428, 10, 178
"""The edges of the plot in it."""
COLORS = 8
"""The page has this many colours of lines."""
SMOOTHING = 0.7
"""Weight of the past in the exponential moving average."""
SMOOTHED_FROM = 8
"""A line of fewer points is drawn as it is."""
MOST_COLUMNS = 60
MOST_POINTS = 400
"""Of a line. A chart is about as many pixels wide."""
DASHES = ("", "7 4", "2 3", "10 3 2 3")
"""How lines of one colour are told apart."""

Points = Sequence[tuple[float, float]]
Form = Callable[[float], str]
"""How a chart writes its values."""


@dataclass(frozen=True)
class Series:
    """One line of a chart: (step, value) in order of steps.

    A `measured` series is sparse: its points are marked and not smoothed. `dash` is the place of
    one of `DASHES`.
    """

    label: str
    points: Points
    color: int
    measured: bool = False
    dash: int = 0


@dataclass(frozen=True)
class Frame:
    """The plot area: it maps ranges of the data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a point."""
        # A range of one value has no width: its points are at the left or bottom edge.
        width = (self.x[1] - self.x[0]) or 1
        height = (self.y[1] - self.y[0]) or 1
        right = LEFT + (x - self.x[0]) / width * (RIGHT - LEFT)
        down = BOTTOM - (y - self.y[0]) / height * (BOTTOM - TOP)
        return right, down

    def path(self, points: Points) -> str:
        """Return the SVG path through some points."""
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in points)


@dataclass(frozen=True)
class Plot:
    """What a figure is made of."""

    series: Sequence[Series]
    frame: Frame
    y_ticks: Sequence[float]
    form: Form
    marks: str


def line_chart(title: str, note: str, series: Sequence[Series], *, percent: bool = False) -> str:
    """Return a figure of all series that have points; "" if none has.

    Raw values are drawn faintly behind their moving average.

    Args:
        title: the title.
        note: one line below it.
        series: the lines.
        percent: values are shares and are written in percent.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    xs, ys = _coordinates(drawn)
    # The axis starts at 0, and a line of zeros still has a height.
    highest = max(max(ys), 0.1 if percent else 1e-9)
    y_ticks = ticks(min(0.0, *ys), highest)
    frame = Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    marks = "".join(_line(one, frame) for one in drawn)
    return _figure(title, note, Plot(drawn, frame, y_ticks, _percent if percent else number, marks))


def stacked_chart(title: str, note: str, series: Sequence[Series], unit: str = " s") -> str:
    """Return a figure of columns by step, the series on top of each other; "" without points.

    Args:
        title: the title.
        note: one line below it.
        series: the parts of a column, the lowest first.
        unit: is written behind each value.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    xs, _ = _coordinates(drawn)
    steps = sorted(set(xs))
    columns = _columns(drawn, steps)
    totals = [sum(column) for column in columns]
    y_ticks = ticks(0.0, max(max(totals), 1e-9))
    frame = Frame((steps[0], steps[-1]), (0.0, y_ticks[-1]))
    marks = _stacks(drawn, columns, frame)

    def form(value: float) -> str:
        return f"{number(value)}{unit}"

    return _figure(title, note, Plot(drawn, frame, y_ticks, form, marks))


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Return the exponential moving average, unbiased from the first point on."""
    average, weight = 0.0, 0.0
    averages = []
    for x, y in points:
        average = SMOOTHING * average + (1 - SMOOTHING) * y
        # The weights of the points so far: they add up to 1 only after many points.
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        averages.append((x, average / weight))
    return averages


def thinned(points: Points) -> Points:
    """Return at most about `MOST_POINTS` points: the lowest and the highest of each neighbourhood.

    So no outlier gets lost.
    """
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        near = points[start : start + size]
        ends = {min(near, key=lambda point: point[1]), max(near, key=lambda point: point[1])}
        kept += sorted(ends)
    # The line begins and ends where the data does.
    return sorted({points[0], *kept, points[-1]})


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round values, evenly spaced, that enclose [low, high].

    Args:
        low: the lowest value shown.
        high: the highest value shown.
        most: about how many there are at most.
    """
    rough = (high - low) / (most - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    # The factors are for values that rounding put just above or below a tick.
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Return a number with three significant digits: '0', '0.125', '12.5k' or '3e-4'."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    if size >= 1e-3:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _coordinates(series: Sequence[Series]) -> tuple[list[float], list[float]]:
    """Return all x and all y of some series."""
    xs: list[float] = []
    ys: list[float] = []
    for one in series:
        xs += [x for x, _ in one.points]
        ys += [y for _, y in one.points]
    return xs, ys


def _line(series: Series, frame: Frame) -> str:
    """Return the marks of one series: its line, smoothed if it is long, and its points if few."""
    color = f"var(--s{series.color})"
    points = series.points
    dash = f' stroke-dasharray="{DASHES[series.dash]}"' if series.dash else ""
    marks = []
    if not series.measured and len(points) >= SMOOTHED_FROM:
        marks.append(f'<path d="{frame.path(thinned(points))}" stroke="{color}" class="raw"/>')
        points = smoothed(points)
    path = frame.path(thinned(points))
    marks.append(f'<path d="{path}" stroke="{color}" class="line"{dash}/>')
    # A single point has no line to be seen by.
    if series.measured or len(points) == 1:
        for x, y in series.points:
            right, down = frame.at(x, y)
            marks.append(f'<circle cx="{right:.1f}" cy="{down:.1f}" r="3.5" fill="{color}"/>')
    return "".join(marks)


def _columns(series: Sequence[Series], steps: Sequence[float]) -> list[list[float]]:
    """Return the heights of each column's parts.

    There are at most `MOST_COLUMNS` columns: of more steps, neighbours are averaged.
    """
    values = [dict(one.points) for one in series]
    size = math.ceil(len(steps) / MOST_COLUMNS)
    columns = []
    for start in range(0, len(steps), size):
        neighbours = steps[start : start + size]
        columns.append([_mean(of_series, neighbours) for of_series in values])
    return columns


def _mean(values: Mapping[float, float], steps: Sequence[float]) -> float:
    # A step without a value counts as 0: the part was not there.
    return sum(values.get(step, 0.0) for step in steps) / len(steps)


def _stacks(series: Sequence[Series], columns: Sequence[Sequence[float]], frame: Frame) -> str:
    """Return the marks of all columns."""
    slot = (RIGHT - LEFT) / len(columns)
    # A gap of 1.5 pixels separates columns, as long as they are wide enough.
    width = max(slot - 1.5, 0.8)
    marks = []
    for column, heights in enumerate(columns):
        left = LEFT + column * slot
        base = 0.0
        for one, height in zip(series, heights, strict=True):
            _, top = frame.at(0, base + height)
            _, bottom = frame.at(0, base)
            marks.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{bottom - top:.1f}" fill="var(--s{one.color})"/>'
            )
            base += height
    return "".join(marks)


def _figure(title: str, note: str, plot: Plot) -> str:
    """Return the whole figure: title, key, grid and marks."""
    # Titles and labels come from metric names, which tools of the user's may have.
    keys = "".join(_key(series, plot.form) for series in plot.series)
    return (
        f'<figure class="chart" data-chart="{escape(_readout(plot))}">'
        f"<figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p></figcaption>"
        f'<div class="keys">{keys}<span class="at"></span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_y_axis(plot)}{_x_axis(plot.frame)}{plot.marks}"
        f'<path class="cross" d="M0 {TOP}V{BOTTOM}"/>'
        f'<text x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 6}" class="x">training step</text>'
        "</svg></figure>"
    )


def _readout(plot: Plot) -> str:
    """Return what the page's script reads: where the plot is, and its values as text."""
    series = []
    for one in plot.series:
        series.append([[x, plot.form(y)] for x, y in thinned(one.points)])
    return json.dumps({"x": plot.frame.x, "plot": [LEFT, RIGHT, WIDTH], "series": series})


def _key(series: Series, form: Form) -> str:
    """Return the entry of a series in the key, with its last value."""
    _, last = series.points[-1]
    dash = f' class="dash{series.dash}"' if series.dash else ""
    return (
        f'<span class="key"><i{dash} style="background:var(--s{series.color})"></i>'
        f"{escape(series.label)} <b>{form(last)}</b></span>"
    )


def _y_axis(plot: Plot) -> str:
    """Return the grid lines and their values."""
    marks = []
    for value in plot.y_ticks:
        _, y = plot.frame.at(0, value)
        marks.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" class="grid"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" class="y">{plot.form(value)}</text>')
    return "".join(marks)


def _x_axis(frame: Frame) -> str:
    """Return the steps below the plot."""
    first, last = frame.x
    # Steps are whole numbers, and a tick outside the plot would have no place.
    shown = [tick for tick in ticks(first, last) if first <= tick <= last and tick == int(tick)]
    marks = []
    for step in shown or [first]:
        x, _ = frame.at(step, 0)
        marks.append(f'<text x="{x:.1f}" y="{BOTTOM + 15}" class="x">{step:g}</text>')
    return "".join(marks)
