"""Read which rows of a source a report of `axpo data decontaminate` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.plain_files import NotPlain, read_plain
from axpo.texts import shown

LARGEST = 1 << 28
"""Bytes of a report."""
COMMAND = "axpo data decontaminate"


def left_out(report: Path, source: Mapping[str, Any], rows: int) -> frozenset[int]:
    """Return which rows of a source a report names, counted from 0.

    Args:
        report: its file.
        source: what the report calls the source.
        rows: how many the source has.

    Raises:
        AxpoError: there is no report, or none of this source as it is now.
    """
    again = f"write it with: {COMMAND} RECIPE --against DIR --out {report}"
    found: set[int] = set()
    counted: int | None = None
    for line in _lines(report, again):
        if line.get("source") != source:
            continue
        if "rows" in line:
            counted = line["rows"]
        elif "benchmark" in line:
            found.add(line["row"] - 1)
    path = source["path"]
    if counted is None:
        raise AxpoError(f"{report}: says nothing about {path}; {again}")
    if counted != rows:
        raise AxpoError(
            f"{report}: was written of {shown(counted)} rows of {path}, which has {rows}; {again}"
        )
    return frozenset(found)


def _lines(report: Path, again: str) -> list[dict[str, Any]]:
    try:
        text = read_plain(report, LARGEST).decode()
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
    except FileNotFoundError:
        raise AxpoError(f"{report}: no such report; {again}") from None
    except (NotPlain, OSError, ValueError, RecursionError) as error:
        raise AxpoError(f"{report}: no report of `{COMMAND}`: {error}; {again}") from None
    wrong = [line for line in lines if not _is_line(line)]
    if wrong:
        raise AxpoError(f"{report}: no report of `{COMMAND}`: {shown(wrong[0])}; {again}")
    return lines


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("source"), dict):
        return False
    return isinstance(line.get("row", line.get("rows")), int)
