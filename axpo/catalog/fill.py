"""Follow the files of a run: new and changed ones go into its catalog, missing ones leave it.

A file of groups is replaced at once, so it is read again as a whole when its signature changed. A
log grows by lines, so only what was added is read.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from axpo.catalog.entry import entry_of, labels_of, text_of
from axpo.catalog.schema import open_for_writing
from axpo.errors import AxpoError
from axpo.record.files import MAX_LINE, by_step, open_record, parse_rows
from axpo.record.forms import check_group
from axpo.record.run import HELD_OUT_GROUPS, TRAINING_GROUPS
from axpo.texts import clean, one_line

SOURCES = {"training": TRAINING_GROUPS, "held-out": HELD_OUT_GROUPS}
"""Which groups there are, and in which folder of a run."""
LOGS = ("events.jsonl", "rollouts.jsonl")
ORDINARY = frozenset(
    ("dispatched", "finished", "trained", "carried", "forked", "checkpoint", "worker serves")
)
"""Events of a run that goes well: they are many, and nobody looks for them."""
COMMIT_S = 0.5
"""So often readers see what is new."""


def fill(file: Path, run: Path) -> None:
    """Bring a catalog up to date, or make it; minutes for a very long run.

    Args:
        file: of the catalog, as `axpo.catalog.schema.catalog_file` names it.
        run: the run directory.

    Raises:
        AxpoError: the catalog cannot be written: its disk is full, or another process writes it.
    """
    with closing(open_for_writing(file)) as connection:
        try:
            _fill(connection, run)
        except sqlite3.Error as error:
            raise AxpoError(f"{file}: {error}") from None


def _fill(connection: sqlite3.Connection, run: Path) -> None:
    with _Filler(connection, run) as filler:
        for log in LOGS:
            filler.follow(log)
        for source in SOURCES:
            filler.groups(source)
        filler.forget_missing()


class _Filler:
    """One pass over the files of a run, in transactions of `COMMIT_S` seconds."""

    def __init__(self, connection: sqlite3.Connection, run: Path) -> None:
        self._connection, self._run = connection, run
        self._present: set[str] = set()
        self._committed = time.monotonic()

    def __enter__(self) -> _Filler:
        self._connection.execute("BEGIN IMMEDIATE")
        rows = self._connection.execute("SELECT name, signature, read FROM files")
        self._known = {name: (signature, read) for name, signature, read in rows}
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        # After an error, closing the connection takes back what is half done.
        if error is None:
            self._connection.execute("COMMIT")

    def groups(self, source: str) -> None:
        """Read the new and changed files of one kind of groups."""
        for step, file in by_step(self._run / SOURCES[source], ".jsonl"):
            name = f"{SOURCES[source]}/{file.name}"
            self._present.add(name)
            signature = _signature(file)
            if self._known.get(name, ("", 0))[0] == signature:
                continue
            self._forget(name)
            try:
                self._add_groups(file, name, source, step)
            except (OSError, AxpoError) as error:
                self._unreadable(name, one_line(str(error)))
            self._note(name, signature, 0)

    def follow(self, name: str) -> None:
        """Read the lines that were added to a log."""
        file = self._run / name
        signature = _signature(file)
        if not signature:
            return
        self._present.add(name)
        inode, _, size = signature.split(":")
        known, read = self._known.get(name, ("", 0))
        if known == signature:
            return
        # Another file, or a shorter one: from the beginning.
        if known.partition(":")[0] != inode or int(size) < read:
            self._forget(name)
            read = 0
        try:
            with open_record(file) as lines:
                lines.seek(read)
                for line in _complete_lines(lines):
                    read += len(line)
                    self._add_event(name, line)
        except (OSError, AxpoError) as error:
            self._unreadable(name, one_line(str(error)))
        self._note(name, signature, read)

    def forget_missing(self) -> None:
        """Take out what the run does not have any more: a resume winds it back."""
        for name in self._known.keys() - self._present:
            self._forget(name)

    def _add_groups(self, file: Path, name: str, source: str, step: int) -> None:
        place, offset = 0, 0
        with open_record(file) as lines:
            while line := lines.readline(MAX_LINE):
                for record in parse_rows([line.decode(errors="replace")]):
                    self._add_group(record, (name, source, step, place, offset, len(line)))
                    place += 1
                offset += len(line)

    def _add_group(self, record: dict[str, Any], where: tuple[Any, ...]) -> None:
        name, place = where[0], where[3]
        try:
            check_group(record)
        except ValueError as error:
            self._unreadable(name, f"{name}, record {place + 1}: {one_line(str(error))}")
            return
        values = (*where, *asdict(entry_of(record)).values())
        marks = ", ".join("?" * len(values))
        execute = self._connection.execute
        number = execute(f"INSERT INTO groups VALUES (NULL, {marks})", values).lastrowid
        execute("INSERT INTO texts (rowid, body) VALUES (?, ?)", (number, text_of(record)))
        labels = [(kind, label, number) for kind, label in labels_of(record)]
        self._connection.executemany("INSERT INTO labels VALUES (?, ?, ?)", labels)

    def _add_event(self, name: str, line: bytes) -> None:
        for row in parse_rows([line.decode(errors="replace")]):
            event = row.get("event")
            if not isinstance(event, str) or event in ORDINARY:
                continue
            reason = row.get("reason", row.get("why", ""))
            values = (name, _time(row), event, str(reason), json.dumps(row))
            shown = [clean(value) if isinstance(value, str) else value for value in values]
            self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", shown)

    def _unreadable(self, name: str, reason: str) -> None:
        self._connection.execute("INSERT INTO unreadable VALUES (?, ?)", (name, clean(reason)))

    def _note(self, name: str, signature: str, read: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (name, signature, read)
        )
        now = time.monotonic()
        if now - self._committed > COMMIT_S:
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")
            self._committed = now

    def _forget(self, name: str) -> None:
        of_file = "(SELECT id FROM groups WHERE file = ?)"
        for statement in (
            f"DELETE FROM texts WHERE rowid IN {of_file}",
            f"DELETE FROM labels WHERE id IN {of_file}",
            "DELETE FROM groups WHERE file = ?",
            "DELETE FROM events WHERE file = ?",
            "DELETE FROM unreadable WHERE file = ?",
            "DELETE FROM files WHERE name = ?",
        ):
            self._connection.execute(statement, (name,))


def files_of(run: Path) -> int:
    """Return how many files of groups a run has."""
    return sum(len(by_step(run / folder, ".jsonl")) for folder in SOURCES.values())


def _signature(file: Path) -> str:
    """Return inode, time and size of a file; "" if it is not there."""
    try:
        found = os.stat(file)
    except OSError:
        return ""
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"


def _complete_lines(lines: Any) -> Iterator[bytes]:
    """Yield the lines that end: the last one may still be written."""
    while line := lines.readline(MAX_LINE):
        if not line.endswith(b"\n") and len(line) < MAX_LINE:
            return
        yield line


def _time(row: dict[str, Any]) -> float:
    """Return when something happened, in seconds since the epoch; 0 if the row does not say."""
    try:
        written: Any = row.get("t", row.get("time"))
        if isinstance(written, str):
            return datetime.fromisoformat(written).timestamp()
        seconds = float(written)
        # JSON as Python reads it has NaN, which no column takes.
        return min(max(seconds, 0.0), 1e11) if math.isfinite(seconds) else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0
