"""Read a run's summary: which numbers it holds before and after, and how they are labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
