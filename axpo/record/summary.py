"""The summary of a run that ended: write it, read it, and label its numbers before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.record.files import read_text, replace_file

FILE = "summary.json"

NUMBERS = (
    "pass1_start",  # held-out rates before training; None if they were not measured
    "pass1_end",  # and after it
    "pass4_start",
    "pass4_end",
    "tool_use_start",
    "tool_use_end",
    "steps",
    "seconds",
    "tokens",  # generated in all steps
)
"""What every summary holds, in this order."""


def write_summary(run: Path, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """End a run: write its summary.

    Args:
        run: the run directory.
        numbers: all of `NUMBERS`, and others of any name, which come after them.

    Returns:
        What was written.

    Raises:
        ValueError: one of `NUMBERS` is missing.
    """
    missing = [name for name in NUMBERS if name not in numbers]
    if missing:
        raise ValueError(f"{run / FILE}: {', '.join(missing)} missing; expected all of {NUMBERS}")
    ordered = {name: numbers[name] for name in NUMBERS}
    summary = ordered | dict(numbers)
    replace_file(run / FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def read_summary(run: Path) -> dict[str, Any] | None:
    """Return the summary of a run directory; None if the run has not ended.

    Raises:
        AxpoError: the file is no summary.
    """
    file = run / FILE
    if not file.exists():
        return None
    try:
        summary = json.loads(read_text(file))
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise AxpoError(f"{file}: expected a summary")
    missing = [name for name in ("steps", "seconds", "tokens") if not _is_number(summary.get(name))]
    if missing:
        raise AxpoError(f"{file}: {', '.join(missing)}: expected numbers")
    # The held-out rates; what is no number was not measured.
    return {
        name: value for name, value in summary.items() if value is None or not _odd(name, value)
    }


def _odd(name: str, value: Any) -> bool:
    """Return whether a value has the name of a rate and is none."""
    return name.endswith(("_start", "_end")) and not _is_number(value)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e15  # false for NaN, too


def before_after(summary: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    """Return (label, start, end) of every rate of a summary. A start of None was not measured.

    Rates of single kinds of questions are left out: the rest fits on one screen.
    """
    rates = []
    for key in summary:
        name = key.removesuffix("_start")
        if name == key or f"{name}_end" not in summary:
            continue
        if "kind" in name.split("/"):
            continue
        start, end = summary[f"{name}_start"], summary[f"{name}_end"]
        if end is not None:
            rates.append((label(name), None if start is None else float(start), float(end)))
    return rates


def label(name: str) -> str:
    """Return what people read instead of a metric's name.

    For example `pass4` is 'Pass@4', `tool_use` is 'Tool use', `tool_all_wrong_rate` is
    'Tool all-wrong', `zoom/pass1` is 'zoom: Pass@1' and `end/out_of_tokens` is 'Out of tokens'.
    """
    name = name.replace("end/", "")
    family, slash, rate = name.rpartition("/")
    if slash:
        return f"{family}: {label(rate)}"
    samples = name.removeprefix("pass")
    if samples.isdigit():
        return f"Pass@{samples}"
    words = name.removesuffix("_rate").replace("all_wrong", "all-wrong").replace("_", " ")
    return words.capitalize()


def duration(seconds: float) -> str:
    """Return seconds as '42 s', '7 min 5 s' or '3 h 20 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
