"""The files of a run: JSON lines that only grow, and files that are replaced at once."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

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
    """Append one JSON object as one line. Raises AxpoError: see `appending`."""
    with appending(file) as lines:
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
    _refuse_link(file)
    try:
        return open_plain(file)
    except NotPlain as error:
        raise AxpoError(f"{file}: {error}") from None


def read_text(file: Path) -> str:
    """Return the text of a file of a run.

    Raises:
        AxpoError: it is no regular file, or too large to be one of ours.
    """
    _refuse_link(file)
    try:
        return read_plain(file, MAX_TEXT).decode(errors="replace")
    except NotPlain as error:
        raise AxpoError(f"{file}: {error}") from None


def _refuse_link(file: Path) -> None:
    """Refuse a link: a report would show what it leads to, which may be the user's own."""
    if file.is_symlink():
        raise AxpoError(f"{file}: is no regular file")


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


def appending(file: Path) -> TextIO:
    """Open a file of a run to append lines, each of which is written at once.

    A run from elsewhere may have a link in its place, to a file of the user's.

    Raises:
        AxpoError: it is a link or no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise AxpoError(f"{file}: is no regular file") from None
        raise
    return os.fdopen(descriptor, "a", encoding="utf-8", buffering=1)


def replace_file(file: Path, text: str) -> None:
    """Write a file all or nothing: a kill leaves the old one.

    A link in its place is replaced, and what it leads to is left alone.
    """
    temporary = file.with_name(file.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as out:
        out.write(text)
    # Renaming is one act: readers see the old file or the new one.
    os.replace(temporary, file)
