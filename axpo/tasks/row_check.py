"""Check the rows of a source before a run: every row that can be afforded, or every image.

A few bad rows are set aside. If many are bad, most likely the recipe names the wrong columns.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from axpo.errors import AxpoError
from axpo.tasks.rows import BadRow, Misfit
from axpo.tasks.task import Fits

CHECKED = 20_000
"""Rows of a source that are checked at every start: of a larger source so many, evenly spread."""
DECODED = 32
"""Of these, rows whose images are decoded. Of the others only the header is read."""
FEW = 64
"""Rows for which no threads are started."""
CHUNK = 256
"""Rows between two notes of how far a check of all images came."""

T = TypeVar("T")
Tell: TypeAlias = Callable[[str, int, int], None]
"""Is told of a source how many of how many rows are done."""


@dataclass
class Faults:
    """What is wrong with the rows of a source."""

    path: str
    rows: int  # that were looked at
    bad: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)  # sound rows that do not fit the context

    def judged(self, max_bad_rows: float) -> list[str]:
        """Return what will be set aside, a line each.

        Args:
            max_bad_rows: share of the rows that may be bad.

        Raises:
            AxpoError: more rows are bad, or no row can be asked.
        """
        if len(self.bad) == self.rows == 1:
            raise AxpoError(self.bad[0])
        if len(self.bad) > max_bad_rows * self.rows:
            of_all = f"{len(self.bad):,} of {self.rows:,} rows are bad"
            raise AxpoError(f"{self.bad[0]}; {of_all}, at most {max_bad_rows:.0%} may be")
        if len(self.bad) + len(self.misfits) == self.rows:
            if not self.misfits:
                raise AxpoError(f"{self.bad[0]}; no row of {self.path} can be asked")
            raise AxpoError(f"{self.misfits[0]}; no row of {self.path} fits the context")
        return self.bad + self.misfits


class Checkable(Protocol):
    """The rows of a source, of questions or of demonstrations."""

    path: str
    in_threads: bool
    """Rows may be checked in several threads at once."""

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str:
        """Return a name for this source, read in this way."""

    def check(self, number: int, fits: Fits | None) -> None:
        """Check a row without decoding its images; raise BadRow."""

    def files(self, number: int) -> list[Path | bytes]:
        """Return what the images of a row are read from; raise BadRow if it does not tell."""

    def decode(self, number: int) -> None:
        """Decode the images of a row; raise BadRow."""


def check_rows(rows: Checkable, fits: Fits | None) -> Faults:
    """Check the rows of a source, with the headers of their images and some of their pixels.

    Args:
        rows: of the source.
        fits: checks that a question fits the context; None: that is not checked.
    """
    numbers = spread(len(rows), CHECKED)
    decoded = frozenset(numbers[place] for place in spread(len(numbers), DECODED))

    def fault_of(number: int) -> BadRow | None:
        try:
            rows.check(number, fits)
            if number in decoded:
                rows.decode(number)
        except BadRow as error:
            return error
        return None

    faults = Faults(rows.path, len(numbers))
    found = _in_threads(fault_of, numbers) if rows.in_threads else map(fault_of, numbers)
    for fault in found:
        if isinstance(fault, Misfit):
            faults.misfits.append(str(fault))
        elif fault is not None:
            faults.bad.append(str(fault))
    return faults


def check_images(rows: Checkable, folder: Path, tell: Tell) -> Faults:
    """Decode every image of a source, in threads.

    What was done is noted in a file, so that a check that was stopped goes on where it was. A row
    is decoded again if one of its files has changed.

    Args:
        rows: of the source.
        folder: has the notes.
        tell: is told of the progress.
    """
    notes = _Notes(folder / f"{rows.digest}.jsonl")
    faults = Faults(rows.path, len(rows))
    for start in range(0, len(rows), CHUNK):
        numbers = range(start, min(start + CHUNK, len(rows)))
        found = list(_in_threads(partial(_decoded, rows, notes), numbers))
        notes.add(numbers, found)
        faults.bad += [fault for _, fault in found if fault]
        tell(rows.path, numbers.stop, len(rows))
    return faults


def spread(count: int, most: int) -> Sequence[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    if count <= most:
        return range(count)
    return [index * count // most for index in range(most)]


class _Notes:
    """Of each row that was decoded: a stamp of its images, and what was wrong with them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[int, tuple[str, str]] = {}
        if file.exists():
            # A check that was stopped may have left half a line.
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    number, stamp, fault = json.loads(line)
                    self._known[int(number)] = (str(stamp), str(fault))
                except (ValueError, TypeError, OverflowError, RecursionError):
                    continue

    def fault(self, number: int, stamp: str) -> str | None:
        """Return what was wrong with a row, "" if nothing was; None: it was not decoded."""
        known_stamp, fault = self._known.get(number, ("", ""))
        return fault if known_stamp == stamp else None

    def add(self, numbers: Sequence[int], found: Sequence[tuple[str, str]]) -> None:
        """Note what was found of rows: stamps and faults."""
        pairs = zip(numbers, found, strict=True)
        new = [(number, *one) for number, one in pairs if self._known.get(number) != one]
        if not new:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as lines:
            # The line break comes first: a line that was cut off spoils no other.
            lines.writelines("\n" + json.dumps(note) for note in new)


def _decoded(rows: Checkable, notes: _Notes, number: int) -> tuple[str, str]:
    """Return a stamp of a row's images, and what is wrong with the row ("": nothing)."""
    stamp = ""
    try:
        stamp = _stamp(rows.files(number))
        known = notes.fault(number, stamp)
        if known is not None:
            return stamp, known
        rows.decode(number)
    except BadRow as error:
        return stamp, str(error)
    return stamp, ""


def _stamp(images: Sequence[Path | bytes]) -> str:
    """Return what changes if an image does: of a file its size and time."""
    digest = hashlib.blake2b(digest_size=12)
    for image in images:
        if isinstance(image, bytes):
            digest.update(image)
            continue
        digest.update(str(image).encode("utf-8", "surrogatepass"))
        with suppress(OSError):  # it is not there, or has a name that no file can have
            status = image.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _in_threads(function: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
    """Yield what a function returns of each number, in order."""
    if len(numbers) <= FEW:
        yield from map(function, numbers)
        return
    with ThreadPoolExecutor(os.cpu_count(), "row-check") as threads:
        for start in range(0, len(numbers), CHUNK):
            yield from threads.map(function, numbers[start : start + CHUNK])
