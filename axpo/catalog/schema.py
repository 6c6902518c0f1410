"""The file of a catalog: where it is, what its tables are, and how it is opened."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from axpo.errors import AxpoError

VERSION = 1
"""A catalog of another version is made again."""
UNUSED_DAYS = 60
"""Catalogs that nobody opened for writing for so long are deleted."""
BUSY_S = 20.0
"""How long one process waits until another has written."""

TABLES = """
CREATE TABLE files (
    name TEXT PRIMARY KEY,    -- inside the run directory
    signature TEXT NOT NULL,  -- changes when the file does
    read INTEGER NOT NULL     -- bytes of a growing file that are in the catalog
);
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    source TEXT NOT NULL,     -- training or held-out
    step INTEGER NOT NULL,
    place INTEGER NOT NULL,   -- number of the record in its file, from 0
    offset INTEGER NOT NULL,  -- of its line in the file, in bytes
    length INTEGER NOT NULL,  -- of its line in bytes
    question TEXT NOT NULL,
    family TEXT NOT NULL,     -- "" without one
    text TEXT NOT NULL,       -- the beginning of the question's text
    answer TEXT NOT NULL,
    image TEXT NOT NULL,      -- the first one of the question, "" without one
    rollouts INTEGER NOT NULL,
    right INTEGER NOT NULL,   -- rollouts with a reward above 0
    reward REAL NOT NULL,     -- mean of the rollouts
    forks INTEGER NOT NULL,   -- prefixes that were forked
    recovered INTEGER NOT NULL,
    tokens INTEGER NOT NULL   -- policy tokens of the longest rollout
);
CREATE UNIQUE INDEX group_place ON groups (source, step, place);
CREATE INDEX group_question ON groups (question);
CREATE INDEX group_file ON groups (file);
CREATE TABLE labels (         -- tools that ran, and ends of rollouts
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    id INTEGER NOT NULL,
    PRIMARY KEY (kind, name, id)
) WITHOUT ROWID;
CREATE INDEX label_group ON labels (id);
CREATE VIRTUAL TABLE texts USING fts5 (body);
CREATE TABLE events (
    file TEXT NOT NULL,
    time REAL NOT NULL,       -- seconds since the epoch
    name TEXT NOT NULL,
    reason TEXT NOT NULL,
    fields TEXT NOT NULL      -- all of it, JSON
);
CREATE TABLE unreadable (file TEXT NOT NULL, reason TEXT NOT NULL);
"""


def catalog_file(run: Path, cache: Path | None = None) -> Path:
    """Return the file of a run's catalog; its folder exists afterwards.

    Args:
        run: the run directory.
        cache: folder of all catalogs. Default: `axpo/catalogs` in the user's cache folder.

    Raises:
        AxpoError: the folder cannot be made.
    """
    folder = cache or _cache_home() / "axpo" / "catalogs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AxpoError(f"{folder}: {error.strerror}: set XDG_CACHE_HOME to a folder") from None
    real = os.path.realpath(run)
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return folder / f"{digest}.sqlite3"


def open_for_writing(file: Path) -> sqlite3.Connection:
    """Open a catalog, or make it, if there is none of this version.

    Raises:
        AxpoError: it cannot be made or written.
    """
    _delete_unused(file.parent)
    try:
        return _opened(file)
    except sqlite3.OperationalError as error:
        # Some network file systems cannot lock files.
        raise AxpoError(f"{file}: {error}: choose a folder of this machine with --cache") from None
    except sqlite3.DatabaseError:
        # Not a catalog, or a damaged one: nothing is lost.
        delete(file)
        return _opened(file)


def open_for_reading(file: Path) -> sqlite3.Connection:
    """Open a catalog that is there; its rows can be used by the names of their columns."""
    # Not `immutable`: another process may be writing. As an address: a name may have a "?" in it.
    address = f"{file.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_S)
    connection.row_factory = sqlite3.Row
    return connection


def delete(file: Path) -> None:
    """Delete a catalog."""
    for ending in ("", "-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)


def _opened(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    # Readers are not held up by a writer.
    connection.execute("PRAGMA journal_mode = WAL")
    # A power cut may cost the last second, which is read from the run again.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        connection.execute("ROLLBACK")
        connection.close()
        delete(file)
        return _opened(file)
    if version == 0:
        for statement in TABLES.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
    file.chmod(0o600)
    # A run that has ended changes nothing, but somebody looks at it.
    os.utime(file)
    return connection


def _cache_home() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen) if chosen.startswith("/") else Path.home() / ".cache"


def _delete_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86_400
    for file in folder.glob("*.sqlite3"):
        # Another viewer may have deleted it meanwhile.
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                delete(file)
