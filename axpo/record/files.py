"""The files of a run: JSON lines that only grow, and files that are replaced at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

STEP_PREFIX = "step_"


def step_name(step: int) -> str:
    """Return what a step's files and folders are called, without an ending: `step_0001`."""
    return f"{STEP_PREFIX}{step:04d}"


def by_step(folder: Path, ending: str = "") -> list[tuple[int, Path]]:
    """Return the step and path of all that belongs to a step in a folder, in order of steps."""
    found = []
    for path in folder.glob(f"{STEP_PREFIX}*{ending}"):
        digits = path.name.removesuffix(ending).removeprefix(STEP_PREFIX)
        if digits.isdigit():
            found.append((int(digits), path))
    # By number, not by name: step_10000 comes after step_9999.
    return sorted(found)


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
    """Yield the JSON object of each line; lines that are not JSON are left out."""
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # A kill may have cut off the last line.
            continue


def replace_file(file: Path, text: str) -> None:
    """Write a file all or nothing: a kill leaves the old one."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    # Renaming is one act: readers see the old file or the new one.
    os.replace(temporary, file)
