"""Answers from the catalog of a run: which groups fit, what is in them, and what went wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.catalog.fill import SOURCES, fill
from axpo.catalog.schema import catalog_file, open_for_reading, open_for_writing
from axpo.catalog.wanted import Wanted
from axpo.errors import AxpoError
from axpo.record.files import MAX_LINE, open_record, parse_rows
from axpo.record.forms import check_group

MARKS = ("\x02", "\x03")
"""Around what was found in an excerpt."""

ORDERS: dict[str, str] = {
    "newest": "step DESC, source DESC, place",
    "oldest": "step, source DESC, place",
    "longest": "tokens DESC, step DESC, source DESC, place",
    "best": "reward DESC, step DESC, source DESC, place",
    "worst": "reward, step DESC, source DESC, place",
}
"""How groups can be sorted."""


@dataclass(frozen=True)
class Key:
    """Names a group for good: a catalog that is made again calls it the same."""

    source: str
    step: int
    place: int


@dataclass(frozen=True)
class Listed:
    """One group in a list.

    Attributes:
        key: its name.
        facts: the columns of `groups`.
        excerpt: where the searched text stands, with `MARKS`; "" if none was searched.
    """

    key: Key
    facts: dict[str, Any]
    excerpt: str = ""


@dataclass(frozen=True)
class Found:
    """A page of groups, and how many there are in all."""

    total: int
    groups: list[Listed]


@dataclass(frozen=True)
class Happened:
    """An event of a run that is not ordinary."""

    time: float
    name: str
    reason: str
    fields: str


class Catalog:
    """Ask the catalog of a run. It is as new as the last `fill`."""

    def __init__(self, run: Path, cache: Path | None = None) -> None:
        self.run = run
        self.file = catalog_file(run, cache)

    def update(self) -> None:
        """Bring the catalog up to date, as `fill` does."""
        fill(self.file, self.run)

    def find(
        self, wanted: Wanted, order: str = "newest", *, first: int = 0, most: int = 50
    ) -> Found:
        """Return the groups that are wanted.

        Args:
            wanted: which ones.
            order: one of `ORDERS`.
            first: how many to skip.
            most: how many to return.
        """
        conditions, values = wanted.sql()
        with self._reading() as connection:
            # All of them, to count them: to search the texts a second time would take longer.
            found = connection.execute(
                f"SELECT id FROM groups WHERE {conditions} ORDER BY {ORDERS[order]}", values
            ).fetchall()
            listed = []
            for (number,) in found[first : first + most]:
                row = connection.execute("SELECT * FROM groups WHERE id = ?", [number]).fetchone()
                listed.append(_listed(row))
            if wanted.match:
                listed = [_with_excerpt(connection, one, wanted.match) for one in listed]
        return Found(len(found), listed)

    def keys(self, wanted: Wanted, order: str = "newest") -> list[Key]:
        """Return the names of all groups that are wanted."""
        conditions, values = wanted.sql()
        rows = self._all(
            f"SELECT source, step, place FROM groups WHERE {conditions} ORDER BY {ORDERS[order]}",
            values,
        )
        return [Key(*row) for row in rows]

    def get(self, key: Key) -> Listed | None:
        """Return one group; None if there is none of this name."""
        rows = self._all(
            "SELECT * FROM groups WHERE source = ? AND step = ? AND place = ?",
            [key.source, key.step, key.place],
        )
        return _listed(rows[0]) if rows else None

    def record(self, listed: Listed) -> dict[str, Any]:
        """Return the record of a group, from the run's own file.

        Raises:
            AxpoError: the file has changed since, or cannot be read.
        """
        facts = listed.facts
        try:
            with open_record(self.run / facts["file"]) as lines:
                lines.seek(facts["offset"])
                line = lines.read(min(facts["length"], MAX_LINE))
            (record,) = parse_rows([line.decode(errors="replace")])
            check_group(record)
            if record["question"]["id"] != facts["question"]:
                raise ValueError("another question")
        except (OSError, ValueError):
            raise AxpoError(
                f"{facts['file']}, record {listed.key.place + 1}: has changed; ask again"
            ) from None
        return record

    def names(self) -> dict[str, list[str]]:
        """Return which families, tools and ends there are."""
        found = {}
        for kind in ("tool", "end"):
            rows = self._all(
                "SELECT DISTINCT name FROM labels WHERE kind = ? ORDER BY name", [kind]
            )
            found[kind] = [row["name"] for row in rows]
        rows = self._all("SELECT DISTINCT family FROM groups WHERE family != '' ORDER BY family")
        found["family"] = [row["family"] for row in rows]
        return found

    def steps(self, source: str) -> list[int]:
        """Return the steps of which there are groups, in order."""
        rows = self._all(
            "SELECT DISTINCT step FROM groups WHERE source = ? ORDER BY step", [source]
        )
        return [row["step"] for row in rows]

    def of_question(self, question: str) -> list[Listed]:
        """Return all groups of one question, the newest first."""
        rows = self._all(
            "SELECT * FROM groups WHERE question = ? ORDER BY step DESC, place", [question]
        )
        return [_listed(row) for row in rows]

    def newest_of_each(self) -> dict[str, Listed]:
        """Return the newest group of each question."""
        # SQLite takes the other columns from the row that has the maximum.
        rows = self._all("SELECT *, max(step) FROM groups GROUP BY question")
        return {row["question"]: _listed(row) for row in rows}

    def happened(self, most: int = 300) -> list[Happened]:
        """Return what was not ordinary, the newest first."""
        rows = self._all(
            "SELECT time, name, reason, fields FROM events ORDER BY time DESC LIMIT ?", [most]
        )
        return [Happened(*row) for row in rows]

    def happened_counts(self) -> list[tuple[str, str, int]]:
        """Return (name, reason, count) of what was not ordinary, the most frequent first."""
        rows = self._all(
            "SELECT name, reason, count(*) AS many FROM events GROUP BY name, reason "
            "ORDER BY many DESC, name LIMIT 100"
        )
        return [tuple(row) for row in rows]

    def reasons(self, file: str, name: str) -> list[str]:
        """Return the reasons of one kind of event in one log, each once, in order."""
        rows = self._all(
            "SELECT reason FROM events WHERE file = ? AND name = ? "
            "GROUP BY reason ORDER BY min(rowid)",
            [file, name],
        )
        return [row["reason"] for row in rows]

    def unreadable(self) -> list[str]:
        """Return which records were left out, and why."""
        return [row["reason"] for row in self._all("SELECT reason FROM unreadable")]

    def size(self) -> tuple[int, int]:
        """Return how many groups, and how many of their files, are in the catalog."""
        folders = [f"{folder}/%" for folder in SOURCES.values()]
        with self._reading() as connection:
            (groups,) = connection.execute("SELECT count(*) FROM groups").fetchone()
            (files,) = connection.execute(
                "SELECT count(*) FROM files WHERE name LIKE ? OR name LIKE ?", folders
            ).fetchone()
        return groups, files

    def _all(self, statement: str, values: list[Any] | None = None) -> list[sqlite3.Row]:
        with self._reading() as connection:
            return connection.execute(statement, values or []).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # Somebody has deleted it: it is empty until the next `fill`.
        if not self.file.exists():
            open_for_writing(self.file).close()
        # One a question: threads of a server do not share connections, and opening takes 0.1 ms.
        connection = open_for_reading(self.file)
        try:
            yield connection
        finally:
            connection.close()


def _listed(row: sqlite3.Row) -> Listed:
    return Listed(Key(row["source"], row["step"], row["place"]), dict(row))


def _with_excerpt(connection: sqlite3.Connection, listed: Listed, match: str) -> Listed:
    # Of the rows of a page only: an excerpt takes longer than finding the row.
    (excerpt,) = connection.execute(
        "SELECT snippet(texts, 0, ?, ?, ' … ', 24) FROM texts WHERE texts MATCH ? AND rowid = ?",
        [*MARKS, match, listed.facts["id"]],
    ).fetchone()
    return Listed(listed.key, listed.facts, excerpt)
