"""The files of a run: JSON lines that only grow, and files that are replaced at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

STEP_PREFIX = "step_"


def step_name(step: int) -> str:
    """Return the name that a step's file or folder starts with: `step_0001`."""
    return f"{STEP_PREFIX}{step:04d}"


def step_of(name: str) -> int | None:
    """Return the step of a name that `step_name` made; None for any other name."""
    digits = name.removeprefix(STEP_PREFIX)
    return int(digits) if digits.isdigit() else None


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as one line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; none if the file does not exist."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        yield from parse_rows(lines)


def parse_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line."""
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # The last line of a run that was killed may be cut off.
            continue


def replace_file(file: Path, text: str) -> None:
    """Write a file all or nothing: a kill leaves the old one."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
