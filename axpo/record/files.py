"""The files of a run: JSON lines that only grow, and files that are replaced at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from axpo.errors import AxpoError
from axpo.plain_files import NotPlain, open_plain, read_plain

STEP_PREFIX = "step_"
MAX_DIGITS = 9
"""Of a step. Python refuses to read numbers of thousands of digits."""
MAX_LINE = 1 << 30
"""Bytes of a row: a group of long rollouts takes a few million."""
MAX_TEXT = 64 << 20
"""Bytes of a file that is read in one piece."""


def step_name(step: int) -> str:
    """Return what a step's files and folders are called, without an ending: `step_0001`."""
    return f"{STEP_PREFIX}{step:04d}"


def by_step(folder: Path, ending: str = "") -> list[tuple[int, Path]]:
    """Return the step and path of all that belongs to a step in a folder, in order of steps."""
    found = []
    for path in folder.glob(f"{STEP_PREFIX}*{ending}"):
        digits = path.name.removesuffix(ending).removeprefix(STEP_PREFIX)
        if digits.isdecimal() and len(digits) <= MAX_DIGITS:
            found.append((int(digits), path))
    # By number, not by name: step_10000 comes after step_9999.
    return sorted(found)


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as one line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; none if the file does not exist.

    Raises:
        AxpoError: it is no regular file.
    """
    if not file.exists():
        return
    with open_record(file) as lines:
        yield from parse_rows(_lines(lines))


def open_record(file: Path) -> BinaryIO:
    """Open a file of a run for reading; raise AxpoError if it is no regular file."""
    try:
        return open_plain(file)
    except NotPlain as error:
        raise AxpoError(f"{file}: {error}") from None


def read_text(file: Path) -> str:
    """Return the text of a file of a run.

    Raises:
        AxpoError: it is no regular file, or too large to be one of ours.
    """
    try:
        return read_plain(file, MAX_TEXT).decode(errors="replace")
    except NotPlain as error:
        raise AxpoError(f"{file}: {error}") from None


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        yield line.decode(errors="replace")


def parse_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line; lines that are no JSON object are left out."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            # A kill may have cut off the last line.
            continue
        if isinstance(row, dict):
            yield row


def replace_file(file: Path, text: str) -> None:
    """Write a file all or nothing: a kill leaves the old one."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    # Renaming is one act: readers see the old file or the new one.
    os.replace(temporary, file)
