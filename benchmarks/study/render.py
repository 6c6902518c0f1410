"""A study's raw results as a table and a figure of end values: means over seeds with 95 % bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
"""Heading of each column."""
OF_PART = ("pass1", "tool_use_rate")
"""What is shown beside the rest of questions on which the tool does not help (kind "control"), and of each family of a mixed task."""

Result: TypeAlias = dict[str, Any]
"""One run's raw result, as `benchmarks.study.runs.collect` keeps it."""


@dataclass(frozen=True)
class Cell:
    values: list[float]  # of each seed that has such a number
    estimate: Estimate


Table: TypeAlias = dict[str, dict[str, Cell]]
"""Of each arm, its cells by column; a column of which an arm has no number is left out."""


def read_results(folder: Path) -> list[Result]:
    """The raw results of a folder, in order of seed."""
    results = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    return sorted(results, key=lambda result: result["seed"])


def by_arm(results: Sequence[Result], arms: Sequence[str]) -> dict[str, list[Result]]:
    """The results of each arm, in the given order; arms that no run has are left out."""
    found = {arm: [result for result in results if result["arm"] == arm] for arm in arms}
    return {arm: runs for arm, runs in found.items() if runs}


def table(arms: dict[str, list[Result]]) -> Table:
    """Where all arms start from, then a row an arm. Held-out rates vary over seeds and questions, all else over seeds."""
    # One a seed: all arms of a seed start alike, so not every run measures its start.
    starts = {
        run["seed"]: run
        for runs in reversed(arms.values())
        for run in runs
        if run["held_out"][0]["step"] == 0
    }
    tokens = {run["seed"]: run["summary"]["tokens"] for run in arms.get(BASELINE, ())}
    rows = {START: _held_out([starts[seed] for seed in sorted(starts)], 0)} if starts else {}
    for arm, runs in arms.items():
        costs = {
            "recovery_rate": [
                100 * float(np.mean(steps))
                for run in runs
                if (steps := _numbers(run, "recovery_rate"))
            ],
            "tokens": [run["summary"]["tokens"] / 1000 for run in runs],
            "extra_tokens": [
                100 * (run["summary"]["tokens"] / tokens[run["seed"]] - 1)
                for run in runs
                if run["seed"] in tokens
            ],
            "seconds": [run["summary"]["seconds"] for run in runs],
        }
        rows[arm] = _held_out(runs, -1) | {
            name: Cell(values, estimate(values)) for name, values in costs.items() if values
        }
    return rows


def held_out_parts(evaluation: dict[str, Any], part: str | None = None) -> Array:
    """[Q, M, 2] of a run's evaluation (`rate_parts`): of all its questions, or those of one kind or family."""
    counts = [
        row
        for name, rows in evaluation["counts"].items()
        if part in (None, name, name.split("/")[0])
        for row in rows
    ]
    return rate_parts(np.array(counts, np.float64).reshape(-1, 4))


def markdown(rows: Table) -> str:
    """One row an arm, with the number of seeds."""
    parts = dict.fromkeys(
        name.split("/")[0] for row in rows.values() for name in row if "/" in name
    )
    columns = COLUMNS | {
        f"{part}/{name}": f"{part}: {COLUMNS[name]}" for part in parts for name in OF_PART
    }
    lines = [
        "| " + " | ".join(["arm", "seeds", *columns.values()]) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for arm, row in rows.items():
        cells = [_shown(row.get(name)) for name in columns]
        lines.append(f"| {arm} | {len(row['pass1'].values)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(rows: Table, path: Path) -> None:
    """Held-out Pass@1, Pass@4 and tool use of each arm, and of each of its seeds. Needs matplotlib (`pip install .[bench]`)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    places = np.arange(len(rows))[::-1]
    drawing, axes = pyplot.subplots(
        1, 3, sharey=True, figsize=(12, 1 + 0.32 * len(rows)), layout="constrained"
    )
    for axis, name in zip(axes, ("pass1", "pass4", "tool_use_rate"), strict=True):
        mean, low, high = np.array([row[name].estimate for row in rows.values()]).T
        axis.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", capsize=3)
        for place, row in zip(places, rows.values(), strict=True):
            axis.plot(row[name].values, [place] * len(row[name].values), "|", color="gray")
        axis.set_xlabel(COLUMNS[name])
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, list(rows))
    drawing.savefig(path, dpi=150)
    pyplot.close(drawing)


def _held_out(runs: Sequence[Result], which: int) -> dict[str, Cell]:
    """In percent, of the first (0) or last (-1) evaluation of each run; those of each part (`OF_PART`) beside them."""
    evaluations = [run["held_out"][which] for run in runs]
    cells = _rates([held_out_parts(evaluation) for evaluation in evaluations])
    for part in dict.fromkeys(
        kind.split("/")[0] for kind in evaluations[0]["counts"] if "/" in kind or kind == "control"
    ):
        of_part = _rates([held_out_parts(evaluation, part) for evaluation in evaluations])
        cells |= {f"{part}/{name}": cell for name, cell in of_part.items()}
    return cells


def _rates(runs: Sequence[Array]) -> dict[str, Cell]:
    of_seeds = np.array([100 * rates(parts) for parts in runs]).T
    return {
        name: Cell(values[~np.isnan(values)].tolist(), (100 * mean, 100 * low, 100 * high))
        for name, values, (mean, low, high) in zip(
            RATES, of_seeds, over_seeds_and_questions(runs), strict=True
        )
        if not np.isnan(mean)
    }


def _numbers(run: Result, name: str) -> list[float]:
    """Of the steps that have one."""
    return [row[name] for row in run["metrics"] if row.get(name) is not None]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    mean, low, high = cell.estimate
    return f"{mean:.1f}" if low == high else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
