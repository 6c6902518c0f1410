"""The summary of a run that ended: write it, read it, and label its numbers before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.record.files import replace_file

FILE = "summary.json"

NUMBERS = (
    "pass1_start",  # held-out rates before training; None: not measured
    "pass1_end",  # and after
    "pass4_start",
    "pass4_end",
    "tool_use_start",
    "tool_use_end",
    "steps",
    "seconds",
    "tokens",  # generated, in all steps
)
"""What every summary holds, in this order."""


def write_summary(run: Path, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """End a run: write its summary and return what was written.

    Args:
        run: the run directory.
        numbers: all of `NUMBERS`, and any others, which come after them.

    Raises:
        ValueError: one of `NUMBERS` is missing.
    """
    missing = [name for name in NUMBERS if name not in numbers]
    if missing:
        raise ValueError(f"summary of {run}: expected {', '.join(missing)} among its numbers")
    summary = {name: numbers[name] for name in NUMBERS} | dict(numbers)
    replace_file(run / FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def read_summary(run: Path) -> dict[str, Any] | None:
    """Return the summary of a run directory; None if the run has not ended."""
    file = run / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def before_after(summary: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """(label, start, end) of every rate that a summary holds, but those of kinds of questions: one screen. Start None: not measured."""
    names = [
        n.removesuffix("_start")
        for n in summary
        if n.endswith("_start") and f"{n.removesuffix('_start')}_end" in summary
    ]
    names = [n for n in names if "kind" not in n.split("/")]
    pairs = [(n, summary[f"{n}_start"], summary[f"{n}_end"]) for n in names]
    return [
        (label(n), None if start is None else float(start), float(end))
        for n, start, end in pairs
        if end is not None
    ]


def label(name: str) -> str:
    """`pass4` -> 'Pass@4', `tool_use` -> 'Tool use', `tool_all_wrong_rate` -> 'Tool all-wrong', `zoom/pass1` -> 'zoom: Pass@1'."""
    family, slash, name = name.rpartition("/")
    if slash:
        return f"{family}: {label(name)}"
    if name.removeprefix("pass").isdigit():
        return f"Pass@{name.removeprefix('pass')}"
    return (
        name.removesuffix("_rate").replace("all_wrong", "all-wrong").replace("_", " ").capitalize()
    )


def duration(seconds: float) -> str:
    """'42 s', '7 min 5 s', '3 h 20 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
