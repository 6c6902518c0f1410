"""Read rows from files of JSON lines and of JSON, plain and compressed.

Of lines only the places are kept: a row is read and parsed when it is asked for. A row that
cannot be parsed is that row's fault. A file that is no text in UTF-8 is refused as a whole.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from axpo.errors import AxpoError
from axpo.texts import one_line, shown

Row = Mapping[str, Any]
Parse = Callable[[bytes], Row]

MAX_LINE = 256 << 20
"""Bytes of one row. An image of 100 MB is 134 MB in base64."""
UNPACKED = 1 << 30
"""Bytes that any compressed file may hold. What holds more must not be `MAX_RATIO` times smaller: a
file that fills the disk is no data set. Rows of text shrink to a tenth, seldom to a fiftieth."""
MAX_RATIO = 200
BOM = b"\xef\xbb\xbf"
# What a file of another kind begins with, the longest first.
_OTHERS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
}


_BEFORE_LIST = re.compile(r"\ufeff?\s*\[\s*")
_BETWEEN_ROWS = re.compile(r"[\s,]*")


class Table(Protocol):
    """The rows of one source."""

    columns: tuple[str, ...] | None
    """The names of all columns; None if every row has its own."""

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """Return a row, counted from 0. It may be called in any thread.

        Raises:
            ValueError: the row cannot be read; one short line.
        """


class ListTable(Table):
    """Rows in memory."""

    columns: tuple[str, ...] | None = None

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Row:
        """Return a row; raise ValueError if it is no object."""
        return _object(self._rows[number])


class FileTable(Table):
    """Rows that are read from their places in a file."""

    def __init__(
        self, file: BinaryIO, starts: array[int], parse: Parse, columns: Sequence[str] | None
    ) -> None:
        """Keep the file open.

        Args:
            file: it has a descriptor of its own.
            starts: of each row the first byte, and the byte after its last, one after the other.
            parse: turns the bytes of a row into a row.
            columns: names of all columns, if the rows share them.
        """
        self._file, self._starts, self._parse = file, starts, parse
        self.columns: tuple[str, ...] | None = None if columns is None else tuple(columns)

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts) // 2

    def row(self, number: int) -> Row:
        """Return a row; raise ValueError if it cannot be parsed."""
        start, stop = self._starts[2 * number], self._starts[2 * number + 1]
        # `pread` has no position that threads would share.
        return self._parse(os.pread(self._file.fileno(), stop - start, start))


def read_lines(path: Path) -> Table:
    """Return the rows of a .jsonl file, or of a .jsonl.gz file.

    Raises:
        AxpoError: there is no such file, or it is no text in UTF-8.
    """
    file = opened(path)
    starts, encoding = array("q"), Encoding(path, "row")
    stop = file.tell()
    for line in lines_of(file, path):
        start, stop = stop, stop + len(line)
        if line.strip():
            starts.extend((start, stop))
            encoding.look_at(line)
    encoding.check()
    return FileTable(file, starts, parse_row, columns=None)


def read_json(path: Path) -> Table:
    """Return the rows of a .json file: a list of objects, or JSON lines by another name.

    Raises:
        AxpoError: there is no such file, it is no text in UTF-8, or it holds something else.
    """
    with opened(path) as file:
        raw = file.read()
    text = ""
    try:
        text = utf8_text(raw)
        rows = parse_json(text)
    except ValueError as error:
        # A second object after the first: lines.
        if "Extra data" in str(error):
            return read_lines(path)
        raise AxpoError(f"{path}{_first_bad(text)}: {error}") from None
    if isinstance(rows, dict) and raw.count(b"\n", 0, len(raw.rstrip())) == 0:
        return read_lines(path)
    if not isinstance(rows, list):
        found = f"{type(rows).__name__} with {shown(list(rows))}" if isinstance(rows, dict) else ""
        expected = "expected a list of objects, or an object a line"
        raise AxpoError(f"{path}: {expected}; found {found or shown(rows)}")
    return ListTable(rows)


def _first_bad(text: str) -> str:
    """Return the place of the first row of a list that cannot be parsed: `, row 3`."""
    place = _BEFORE_LIST.match(text)
    if place is None:
        return ""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    start, number = place.end(), 1
    while True:
        try:
            _, stop = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return f", row {number}"
        between = _BETWEEN_ROWS.match(text, stop)
        start, number = between.end() if between else stop, number + 1


def parse_row(raw: bytes) -> Row:
    """Return the object of a line of JSON; raise ValueError if it is none."""
    return _object(parse_json(utf8_text(raw)))


class Encoding:
    """Tells a file of another encoding from one with a few bad lines."""

    def __init__(self, path: Path, counted: str) -> None:
        """Begin a file whose rows, or lines, are looked at."""
        self._path, self._counted = path, counted
        self.lines = self._beyond_ascii = self._bad = 0
        self._first = ""

    def look_at(self, line: bytes) -> None:
        """Count a line."""
        self.lines += 1
        if line.isascii():
            return
        self._beyond_ascii += 1
        try:
            line.decode()
        except UnicodeDecodeError:
            self._bad += 1
            self._first = self._first or f"{self._counted} {self.lines}: {_no_utf8(line)}"

    def check(self) -> None:
        """Raise AxpoError if most lines that go beyond ASCII are no UTF-8."""
        if 2 * self._bad > self._beyond_ascii:
            raise AxpoError(
                f"{self._path}: not UTF-8 but another encoding, perhaps latin-1, which "
                f"`iconv -f latin1 -t utf-8` converts ({self._first})"
            )


def opened(path: Path) -> BinaryIO:
    """Open a file after its byte order mark; one that is compressed, as an unpacked copy.

    Raises:
        AxpoError: there is no such file, or it begins as no text in UTF-8 does.
    """
    if not path.is_file():
        raise AxpoError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        file: BinaryIO = path.open("rb")
        if path.name.endswith(".gz"):
            file = _unpacked(file)
        head = file.read(4)
    except (OSError, EOFError, zlib.error) as error:
        raise AxpoError(f"{path}: {one_line(str(error))}") from None
    other = next((name for start, name in _OTHERS.items() if head.startswith(start)), None)
    # Without a mark, the zeros of wide characters tell.
    if other is None and b"\0" in head:
        other = "UTF-16 or binary"
    if other is not None:
        raise AxpoError(f"{path}: {other}; expected text in UTF-8")
    file.seek(len(BOM) if head.startswith(BOM) else 0)
    return file


def _unpacked(packed: BinaryIO) -> BinaryIO:
    # In a file without a name: rows are read from their places, and a file takes no memory.
    with packed, gzip.open(packed) as content:
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        most = most_unpacked(os.fstat(packed.fileno()).st_size)
        while chunk := content.read(1 << 20):
            copy.write(chunk)
            if copy.tell() > most:
                copy.close()
                raise OSError(f"unpacks to more than {most:,} bytes; unpack it by hand if it may")
    copy.seek(0)
    return copy


def most_unpacked(size: int) -> int:
    """Return how many bytes a compressed file of a size may hold."""
    return max(UNPACKED, MAX_RATIO * size)


def lines_of(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; only a line feed ends one."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise AxpoError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes")
        yield line


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError, one short line, if it is none."""
    try:
        # Files that were put one after another have a byte order mark in the middle.
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON with too many lists and objects inside each other") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        most = sys.get_int_max_str_digits()
        raise ValueError(f"a whole number of more than {most:,} digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of the pairs; raise ValueError if it has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _object(found: Any) -> Row:
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {shown(found)}")
    return found


def utf8_text(raw: bytes) -> str:
    """Return the text of bytes; raise ValueError if they are no UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(_no_utf8(raw)) from None


def _no_utf8(raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte 0x{raw[error.start]:02x} at place {error.start + 1} is not UTF-8"
    raise AssertionError("this is UTF-8")
