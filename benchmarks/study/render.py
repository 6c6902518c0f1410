"""Render the raw results of a study as a table, and as a figure of end values.

Both show means over seeds with 95 % bootstrap intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.study.intervals import (
    RATES,
    Array,
    Estimate,
    estimate,
    over_seeds_and_questions,
    rate_parts,
    rates,
)

START = "SFT start"
BASELINE = "grpo"
"""The arm that extra tokens are counted from."""

COLUMNS = {
    "pass1": "Pass@1, %",
    "pass4": "Pass@4, %",
    "tool_use_rate": "tool use, %",
    "pass1_given_tool": "Pass@1 given tool use, %",
    "tool_all_wrong_rate": "tool-using subgroup all wrong, %",
    "recovery_rate": "recovery, %",
    "tokens": "tokens, thousands",
    "extra_tokens": "extra tokens over GRPO, %",
    "seconds": "seconds",
}
"""The heading of each column."""

OF_PART = ("pass1", "tool_use_rate")
"""What has columns of its own for questions on which the tool does not help (kind "control"), and
for each family of a mixed task."""

IN_FIGURE = ("pass1", "pass4", "tool_use_rate")

FIRST, LAST = 0, -1
"""Which evaluation of a run."""

Result: TypeAlias = dict[str, Any]
"""The raw result of one run, as `benchmarks.study.runs.collect` keeps it."""


@dataclass(frozen=True)
class Cell:
    """One number of an arm."""

    values: list[float]  # of each seed that has such a number
    estimate: Estimate


Row: TypeAlias = dict[str, Cell]
"""The cells of an arm by column; a column of which the arm has no number is left out."""
Table: TypeAlias = dict[str, Row]
"""The rows by arm."""


def read_results(folder: Path) -> list[Result]:
    """Return the raw results of a folder, in the order of their seeds."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.json"))]
    return sorted(map(json.loads, texts), key=lambda result: result["seed"])


def by_arm(results: Sequence[Result], arms: Sequence[str]) -> dict[str, list[Result]]:
    """Return the results of each arm in the order of `arms`; an arm without a run is left out."""
    found = {}
    for arm in arms:
        runs = [result for result in results if result["arm"] == arm]
        if runs:
            found[arm] = runs
    return found


def table(arms: dict[str, list[Result]]) -> Table:
    """Return a row of where all arms start from, then a row for each arm.

    Held-out rates vary over seeds and questions, all else over seeds.
    """
    starts = _starts(arms)
    baseline = {run["seed"]: run["summary"]["tokens"] for run in arms.get(BASELINE, ())}
    rows = {START: _held_out(starts, FIRST)} if starts else {}
    for arm, runs in arms.items():
        rows[arm] = _held_out(runs, LAST) | _costs(runs, baseline)
    return rows


def held_out_parts(evaluation: dict[str, Any], part: str | None = None) -> Array:
    """Return what each question of an evaluation adds to the rates, shape [Q, M, 2].

    Args:
        evaluation: one evaluation of a run.
        part: only questions of this kind or family; None: all of them.
    """
    counts: list[list[int]] = []
    for name, rows in evaluation["counts"].items():
        if part in (None, name, name.split("/")[0]):
            counts += rows
    # An evaluation without such questions has the shape [0, 4].
    return rate_parts(np.array(counts, np.float64).reshape(-1, 4))


def markdown(rows: Table) -> str:
    """Return the table as Markdown: a line for each arm, with its number of seeds."""
    columns = COLUMNS | _columns_of_parts(rows.values())
    heads = ["arm", "seeds", *columns.values()]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for arm, row in rows.items():
        seeds = len(row["pass1"].values)
        cells = [_shown(row.get(name)) for name in columns]
        lines.append(_line([arm, str(seeds), *cells]))
    return "\n".join(lines) + "\n"


def figure(rows: Table, path: Path) -> None:
    """Draw held-out Pass@1, Pass@4 and tool use of each arm, and of each of its seeds.

    Needs matplotlib (`pip install .[bench]`).
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # The first arm is drawn on top.
    places = np.arange(len(rows))[::-1]
    drawing, axes = pyplot.subplots(
        1, len(IN_FIGURE), sharey=True, figsize=(12, 1 + 0.32 * len(rows)), layout="constrained"
    )
    for axis, name in zip(axes, IN_FIGURE, strict=True):
        mean, low, high = np.array([row[name].estimate for row in rows.values()]).T
        axis.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", capsize=3)
        for place, row in zip(places, rows.values(), strict=True):
            seeds = row[name].values
            axis.plot(seeds, [place] * len(seeds), "|", color="gray")
        axis.set_xlabel(COLUMNS[name])
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, list(rows))
    drawing.savefig(path, dpi=150)
    pyplot.close(drawing)


def _starts(arms: dict[str, list[Result]]) -> list[Result]:
    """Return one run for each seed that measured its start, in the order of seeds.

    All arms of a seed start alike, so not every run measures its start.
    """
    starts: dict[int, Result] = {}
    for runs in arms.values():
        for run in runs:
            first = run["held_out"][FIRST]
            if first["step"] == 0:
                starts.setdefault(run["seed"], run)
    return [starts[seed] for seed in sorted(starts)]


def _costs(runs: Sequence[Result], baseline: dict[int, float]) -> Row:
    """Return the cells that are not of held-out questions.

    Args:
        runs: of one arm.
        baseline: tokens of the baseline's run, by seed.
    """
    columns: dict[str, list[float]] = {
        "recovery_rate": [],
        "tokens": [],
        "extra_tokens": [],
        "seconds": [],
    }
    for run in runs:
        seed, tokens = run["seed"], run["summary"]["tokens"]
        columns["tokens"].append(tokens / 1000)
        columns["seconds"].append(run["summary"]["seconds"])
        recoveries = _numbers(run, "recovery_rate")
        if recoveries:
            columns["recovery_rate"].append(100 * float(np.mean(recoveries)))
        # Tokens are compared seed by seed.
        if seed in baseline:
            columns["extra_tokens"].append(100 * (tokens / baseline[seed] - 1))
    return {name: Cell(values, estimate(values)) for name, values in columns.items() if values}


def _held_out(runs: Sequence[Result], which: int) -> Row:
    """Return the rates of one evaluation of each run, in percent, and those of its parts."""
    evaluations = [run["held_out"][which] for run in runs]
    cells = _rates([held_out_parts(evaluation) for evaluation in evaluations])
    for part in _parts(evaluations[0]):
        of_part = _rates([held_out_parts(evaluation, part) for evaluation in evaluations])
        cells |= {f"{part}/{name}": cell for name, cell in of_part.items()}
    return cells


def _parts(evaluation: dict[str, Any]) -> list[str]:
    """Return the parts of an evaluation that have columns of their own; see `OF_PART`."""
    # A kind of a mixed task is written as family/kind.
    kinds = [kind for kind in evaluation["counts"] if "/" in kind or kind == "control"]
    return list(dict.fromkeys(kind.split("/")[0] for kind in kinds))


def _columns_of_parts(rows: Iterable[Row]) -> dict[str, str]:
    """Return the heading of each column of a part, in the order in which rows have them."""
    parts: dict[str, None] = {}
    for row in rows:
        parts |= dict.fromkeys(name.split("/")[0] for name in row if "/" in name)
    columns: dict[str, str] = {}
    for part in parts:
        columns |= {f"{part}/{name}": f"{part}: {COLUMNS[name]}" for name in OF_PART}
    return columns


def _rates(runs: Sequence[Array]) -> Row:
    """Return a cell for each rate that a run has, in percent.

    Args:
        runs: for each seed what its questions add to the rates, shape [Q, M, 2].
    """
    of_seeds = np.array([100 * rates(parts) for parts in runs]).T
    estimates = over_seeds_and_questions(runs)
    cells = {}
    for name, values, (mean, low, high) in zip(RATES, of_seeds, estimates, strict=True):
        # A rate that no run has gets no cell.
        if not np.isnan(mean):
            present = values[~np.isnan(values)].tolist()
            cells[name] = Cell(present, (100 * mean, 100 * low, 100 * high))
    return cells


def _numbers(run: Result, name: str) -> list[float]:
    """Return a metric of the steps that have it."""
    return [row[name] for row in run["metrics"] if row.get(name) is not None]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    mean, low, high = cell.estimate
    # Nothing varies: there is no interval to show.
    if low == high:
        return f"{mean:.1f}"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"
