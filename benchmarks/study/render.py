"""A study's raw results as a table and a figure: means over seeds with 95 % bootstrap intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

DRAWS = 10_000
COLUMNS = {
    "pass1_end": ("Pass@1, %", 100),
    "pass4_end": ("Pass@4, %", 100),
    "tool_use_end": ("tool use, %", 100),
    "tool_all_wrong_rate_end": ("tools all wrong, %", 100),
    "tokens": ("tokens, thousands", 1e-3),
    "seconds": ("seconds", 1),
}
"""Entry of a summary: heading and factor."""
CONTROL = {"kind/control/pass1_end": ("control: Pass@1, %", 100), "kind/control/tool_use_end": ("control: tool use, %", 100)}
"""The same of questions on which the tool does not help, shown where a study has them."""

Estimate: TypeAlias = tuple[float, float, float]
"""Mean, and the ends of its interval."""
Table: TypeAlias = dict[str, dict[str, list[float]]]
"""Of each arm and entry, the value of each seed."""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The raw results of a folder, in order of seed."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: result["seed"])


def values(results: Sequence[dict[str, Any]], arms: Sequence[str]) -> Table:
    """What the table shows, arms in the given order; arms and entries that no run has are left out."""
    found: Table = {}
    for arm in arms:
        rows = [result["summary"] for result in results if result["arm"] == arm]
        if rows:
            columns = COLUMNS | {name: column for name, column in CONTROL.items() if any(name in row for row in rows)}
            found[arm] = {name: [factor * row[name] for row in rows if name in row] for name, (_, factor) in columns.items()}
    return found


def estimate(samples: Sequence[float]) -> Estimate:
    """Mean with a 95 % percentile bootstrap interval over runs; of one run there is no more than the run itself."""
    drawn = np.random.default_rng(0).choice(samples, (DRAWS, len(samples)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(np.mean(samples)), float(low), float(high)


def markdown(table: Table) -> str:
    """One row an arm."""
    columns = COLUMNS | {name: column for name, column in CONTROL.items() if any(name in entries for entries in table.values())}
    heads = ["arm", "seeds", *(heading for heading, _ in columns.values())]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for arm, entries in table.items():
        cells = [_cell(entries.get(name, ())) for name in columns]
        lines.append(f"| {arm} | {len(entries['pass1_end'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(table: Table, path: Path) -> None:
    """Held-out Pass@1 and tool use of each arm, written to `path`. Needs matplotlib (`pip install .[bench]`)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    places = np.arange(len(table))[::-1]
    drawing, axes = pyplot.subplots(1, 2, sharey=True, figsize=(9, 1 + 0.32 * len(table)), layout="constrained")
    for axis, name in zip(axes, ("pass1_end", "tool_use_end"), strict=True):
        mean, low, high = np.array([estimate(entries[name]) for entries in table.values()]).T
        axis.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", capsize=3)
        for place, entries in zip(places, table.values(), strict=True):
            axis.plot(entries[name], [place] * len(entries[name]), "|", color="gray")
        axis.set_xlabel(COLUMNS[name][0])
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, list(table))
    drawing.savefig(path, dpi=150)
    pyplot.close(drawing)


def _cell(samples: Sequence[float]) -> str:
    if not samples:
        return "–"
    mean, low, high = estimate(samples)
    return f"{mean:.1f}" if len(samples) == 1 else f"{mean:.1f} [{low:.1f}, {high:.1f}]"
