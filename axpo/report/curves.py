"""Which curves the report has: a table of charts, and which metrics each of them draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from axpo.report.charts import COLORS, DASHES, Points, Series, line_chart, stacked_chart

Metrics = Sequence[Mapping[str, Any]]
"""The rows of a run: `step` and that step's numbers."""

Runs = Sequence[tuple[str, Metrics]]
"""Names of runs, and their rows."""

Source = Callable[[Metrics], list[Series]]
"""Makes lines of a chart from a run's metrics. Lines without points are not drawn."""

Draw = Callable[[str, str, Sequence[Series]], str]
"""A kind of chart: title, note and series to markup."""


@dataclass(frozen=True)
class Chart:
    """One chart of the report."""

    title: str
    note: str
    draw: Draw
    sources: tuple[Source, ...]

    def series(self, metrics: Metrics) -> list[Series]:
        """Return the lines of a run."""
        series: list[Series] = []
        for source in self.sources:
            series += source(metrics)
        return series

    def markup(self, metrics: Metrics) -> str:
        """Return the chart of a run; "" if the run has nothing to draw."""
        return self.draw(self.title, self.note, self.series(metrics))

    def overlaid(self, runs: Runs) -> str:
        """Return the chart of several runs over each other: a colour a run, a dash a line.

        Of columns the totals are drawn.
        """
        is_stacked = self.draw not in (share_lines, number_lines)
        draw = number_lines if is_stacked else self.draw
        series: list[Series] = []
        for index, (name, metrics) in enumerate(runs):
            own = [one for one in self.series(metrics) if one.points]
            if is_stacked:
                own = _total(own)
            for place, one in enumerate(own):
                label = f"{name}: {one.label}" if one.label else name
                dash = place % len(DASHES)
                series.append(replace(one, label=label, color=_color(index), dash=dash))
        return draw(self.title, self.note, series)


def charts(metrics: Metrics, undrawn: list[str] | None = None) -> list[str]:
    """Return the markup of every chart that has something to draw.

    Args:
        metrics: of the run.
        undrawn: gets a line for each chart whose numbers cannot be drawn.
    """
    return _drawn(lambda chart: chart.markup(metrics), undrawn)


def overlaid_charts(runs: Runs, undrawn: list[str] | None = None) -> list[str]:
    """Return the markup of every chart of several runs that has something to draw."""
    return _drawn(lambda chart: chart.overlaid(runs), undrawn)


def _drawn(draw: Callable[[Chart], str], undrawn: list[str] | None) -> list[str]:
    drawn = []
    for chart in CHARTS:
        try:
            drawn.append(draw(chart))
        except (ArithmeticError, TypeError, ValueError) as error:
            if undrawn is None:
                raise
            undrawn.append(f"chart {chart.title}: {type(error).__name__}: {error}")
    return [markup for markup in drawn if markup]


def points(metrics: Metrics, name: str) -> Points:
    """Return (step, value) of a metric, of the steps that have it."""
    return [(row["step"], row[name]) for row in metrics if row.get(name) is not None]


def line(metric: str, label: str, color: int) -> Source:
    """Return the source of one line: a number that every step has."""
    return lambda metrics: [Series(label, points(metrics, metric), color)]


def held_out(metric: str, label: str, color: int) -> Source:
    """Return the source of one line of an evaluation's numbers: few steps have them."""
    return lambda metrics: [Series(label, points(metrics, metric), color, measured=True)]


def each(prefix: str, suffix: str = "", label: str = "{}", *, by_name: bool = False) -> Source:
    """Return the source of a line for every metric `<prefix><name><suffix>` that a run has.

    Args:
        prefix: how the metrics begin.
        suffix: how they end.
        label: the label of a line, with `{}` for the name.
        by_name: the lines are in order of their names, not of their appearance.
    """

    def source(metrics: Metrics) -> list[Series]:
        found = [name for name in _names(metrics) if name.startswith(prefix)]
        found = [name for name in found if name.endswith(suffix)]
        if by_name:
            found.sort()
        series = []
        for index, name in enumerate(found):
            own = name.removeprefix(prefix).removesuffix(suffix)
            series.append(Series(label.format(own), points(metrics, name), _color(index)))
        return series

    return source


def tool_latencies(metrics: Metrics) -> list[Series]:
    """Return a line for each tool: the 99th percentile of a call's seconds."""
    series = []
    for index, tool in enumerate(_tools(metrics)):
        series.append(Series(tool, points(metrics, f"tool/{tool}/p99_s"), _color(index)))
    return series


def tool_failures(metrics: Metrics) -> list[Series]:
    """Return a line for each tool: the share of its calls that infrastructure or time ended."""
    series = []
    for index, tool in enumerate(_tools(metrics)):
        shares = []
        for row in metrics:
            calls = row.get(f"tool/{tool}/calls")
            # A step without a call has no share.
            if calls:
                failed = row.get(f"tool/{tool}/infrastructure") or 0
                late = row.get(f"tool/{tool}/deadline") or 0
                shares.append((row["step"], (failed + late) / calls))
        series.append(Series(tool, shares, _color(index)))
    return series


def _total(series: Sequence[Series]) -> list[Series]:
    """Return the sum of some lines, as one line without a label; none without lines."""
    totals: dict[float, float] = {}
    for one in series:
        for step, value in one.points:
            totals[step] = totals.get(step, 0.0) + value
    return [Series("", sorted(totals.items()), 1)] if totals else []


def _names(metrics: Metrics) -> list[str]:
    """Return all names of metrics, each once, in the order in which they appear."""
    # Not of the first row alone: tools and phases may appear in any step.
    names: dict[str, None] = {}
    for row in metrics:
        names.update(dict.fromkeys(row))
    return list(names)


def _tools(metrics: Metrics) -> list[str]:
    """Return the tools that were called, in the order in which they appear."""
    names = [name for name in _names(metrics) if name.startswith("tool/")]
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def _color(index: int) -> int:
    return 1 + index % COLORS


share_lines: Draw = partial(line_chart, percent=True)
number_lines: Draw = line_chart
count_columns: Draw = partial(stacked_chart, unit="")
second_columns: Draw = partial(stacked_chart, unit=" s")

CHARTS = (
    # What the policy does.
    Chart(
        "Pass@1",
        "mean reward of a rollout",
        share_lines,
        (
            line("pass1", "training", 1),
            held_out("eval/pass1", "held-out", 2),
            held_out("eval/pass4", "held-out Pass@4", 5),
        ),
    ),
    Chart(
        "Tool use",
        "share of rollouts with a tool call",
        share_lines,
        (line("tool_use_rate", "training", 1), held_out("eval/tool_use", "held-out", 2)),
    ),
    Chart(
        "Each tool",
        "share of rollouts in which it ran",
        share_lines,
        (each("use/", by_name=True),),
    ),
    Chart(
        "All-wrong subgroups",
        "share of questions where the whole subgroup is wrong",
        share_lines,
        (
            line("tool_all_wrong_rate", "with tool", 6),
            line("no_tool_all_wrong_rate", "without tool", 3),
        ),
    ),
    Chart(
        "Right, by choice",
        "mean reward of rollouts with and without a tool call",
        share_lines,
        (
            line("pass1_given_tool", "with tool", 1),
            line("pass1_given_no_tool", "without tool", 3),
        ),
    ),
    # What resampling does.
    Chart(
        "Recovery",
        "share of resampled prefixes that some fork made right",
        share_lines,
        (
            line("recovery_rate", "recovered", 2),
            line("trigger_rate", "questions that trigger", 5),
        ),
    ),
    Chart(
        "Prefix cache of forks",
        "share of a fork's prompt that the engine had cached",
        share_lines,
        (
            line("fork_cached_share", "mean", 1),
            line("fork_cached_share_min", "lowest", 3),
        ),
    ),
    # What keeps engines and learner busy.
    Chart(
        "Waiting",
        "share of the time that engines had no request, and that rollouts waited for tools",
        share_lines,
        (
            each("engine/", "/idle_share", "engine {} idle"),
            line("tool_wait_share", "rollouts in tools", 6),
        ),
    ),
    Chart(
        "Staleness",
        "groups trained on, by updates since the policy that began them",
        count_columns,
        (each("staleness/", by_name=True),),
    ),
    # What the update does.
    Chart(
        "KL to the reference",
        "k3 estimate, nats a token",
        number_lines,
        (line("kl", "KL", 5),),
    ),
    Chart(
        "Logprob gap",
        "mean |learner - engine| on the same tokens, nats",
        number_lines,
        (line("logprob_gap_mean", "gap", 8),),
    ),
    Chart(
        "Gradient norm",
        "before clipping",
        number_lines,
        (line("grad_norm", "norm", 4),),
    ),
    # What a step costs.
    Chart(
        "Length",
        "policy tokens a rollout",
        number_lines,
        (line("policy_tokens_per_rollout", "tokens", 7),),
    ),
    Chart(
        "Throughput",
        "tokens generated a second",
        number_lines,
        (line("tokens_per_second", "tokens/s", 1),),
    ),
    Chart(
        "Tool latency",
        "seconds, 99th percentile of a step's calls",
        number_lines,
        (tool_latencies,),
    ),
    Chart(
        "Tool failures",
        "share of a step's calls that infrastructure or the deadline ended",
        share_lines,
        (tool_failures,),
    ),
    Chart(
        "Time by phase",
        "seconds a step",
        second_columns,
        (each("time/"),),
    ),
)
"""Every chart, in the order of the page."""
