"""Read rows from tables with tabs or commas.

As of lines, only the places of rows are kept. A row that cannot be parsed is that row's fault; a
quote that nothing closes is the file's, because it swallows the rows behind it.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from axpo.errors import AxpoError
from axpo.tasks.lines import MAX_LINE, Encoding, FileTable, Row, Table, lines_of, opened, utf8_text


def read_table(path: Path, separator: str) -> Table:
    """Return the rows of a .tsv or .csv file, whose first row names the columns.

    Raises:
        AxpoError: there is no such file, it is no text in UTF-8, or its rows cannot be told apart.
    """
    csv.field_size_limit(MAX_LINE)
    file = opened(path)
    starts, encoding = array("q"), Encoding(path, "line")
    position = file.tell()

    def decoded() -> Iterator[str]:
        nonlocal position
        for line in lines_of(file, path):
            position += len(line)
            encoding.look_at(line)
            yield line.decode(errors="replace")

    last = start = position
    columns: list[str] = []
    for fields in _records(decoded(), separator):
        # A file without names of columns is none, and a quote that is never closed takes all rows.
        if isinstance(fields, csv.Error) and (not columns or position - start > MAX_LINE):
            raise AxpoError(f"{path}, line {encoding.lines}: {_of_csv(fields)}")
        if not columns and not isinstance(fields, csv.Error):
            columns = fields
        elif fields:  # or an error, which is told when the row is asked for
            starts.extend((start, position))
        last, start = start, position
    encoding.check()
    if _is_open(os.pread(file.fileno(), position - last, last), separator):
        raise AxpoError(f"{path}, row {len(starts) // 2}: begins a quote that nothing closes")
    if len(set(columns)) < len(columns):
        raise AxpoError(f"{path}: expected names of columns in its first line, each once")
    return FileTable(file, starts, _Fields(columns, separator), columns)


def _records(lines: Iterator[str], separator: str) -> Iterator[list[str] | csv.Error]:
    """Yield the fields of each row, or why it has none."""
    reader = csv.reader(lines, delimiter=separator)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error  # the reader goes on with the next line


def _is_open(raw: bytes, separator: str) -> bool:
    """Return whether the last row of a file ends inside of a quote: it swallowed those after it."""
    try:
        list(csv.reader([raw.decode(errors="replace")], delimiter=separator, strict=True))
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def _of_csv(error: csv.Error) -> str:
    # The reader says "do you need to open the file in universal-newline mode?"
    if "new-line" in str(error):
        return "a carriage return outside of quotes that ends no line"
    if "expected after" in str(error):
        return "text behind a closing quote (quotes inside of a quoted field are doubled)"
    return f"{error} (a quote that nothing closes?)"


class _Fields:
    """Parses one row of a table."""

    def __init__(self, columns: Sequence[str], separator: str) -> None:
        self._columns, self._separator = columns, separator

    def __call__(self, raw: bytes) -> Row:
        text = utf8_text(raw)
        try:
            # Strict: `"Yes" he said` would be read without its quotes.
            fields = next(csv.reader([text], delimiter=self._separator, strict=True))
        except csv.Error as error:
            raise ValueError(_of_csv(error)) from None
        if len(fields) != len(self._columns):
            lines = raw.rstrip(b"\r\n").count(b"\n") + 1
            spread = f" on {lines:,} lines (is a quote not closed?)" if lines > 1 else ""
            expected = f"the first line names {len(self._columns)} columns"
            raise ValueError(f"{len(fields)} fields{spread}, but {expected}")
        # An empty field is a missing one.
        return {name: field or None for name, field in zip(self._columns, fields, strict=True)}
