"""Find the files of a benchmark as they were downloaded, and read their rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.unpack import ROWS, save_picture, unpacked
from axpo.plain_files import NotPlain, read_plain
from axpo.tasks.verifiers import accepted
from rollout_workers.trajectory import LazyImage, Pixels, UnusableQuestion
from tool_server.images import ImageError, ImageLimits, decode

LIMITS = ImageLimits(max_pixels=89_478_485, max_bytes=200_000_000)
"""Of a benchmark's pictures. None is scaled down: a crop is cut from the original. One of 7680x4320
takes 100 MB while it is asked."""

LARGEST = 1 << 30
"""Bytes of a JSON file."""

NAMED = 3
"""Files that are named if none of those that are there is the right one."""

CACHE = ".axpo"
"""The folder, beside the files of a benchmark, of what was unpacked."""

PICTURES = "pictures"
"""The folder in it of pictures that were written into JSON."""


class Row:
    """One row, whose columns are checked when they are read."""

    def __init__(self, values: Mapping[str, Any], where: str, folders: Sequence[Path]) -> None:
        """Take a row.

        Args:
            values: the columns.
            where: names file and row in messages.
            folders: what paths of pictures are relative to: the first in which a file is.
        """
        self._values, self.where, self._folders = values, where, folders

    def has(self, name: str) -> bool:
        """Return whether a column is there and not empty."""
        return self._values.get(name) not in (None, "", [])

    def get(self, name: str) -> Any:
        """Return a column as it is.

        Raises:
            AxpoError: there is no such column.
        """
        if name not in self._values:
            columns = ", ".join(self._values) or "no columns"
            raise AxpoError(f"{self.where}: no column {name}; the row has {columns}")
        return self._values[name]

    def text(self, name: str) -> str:
        """Return a column that must be a text or a number, as text.

        Raises:
            AxpoError: it is something else, or empty.
        """
        value = self.get(name)
        is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
        if not is_text or not str(value).strip():
            raise self.fault(name, "a text", value)
        return str(value).strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a column that must be a list of texts, or one text; without empty ones.

        A list may also be written as a text: `["70", "40"]`.

        Raises:
            AxpoError: it is something else.
        """
        value = self.get(name)
        listed = accepted(value) if isinstance(value, str) else [value]
        values = value if isinstance(value, list) else listed
        if not all(isinstance(one, str | int | float) or one is None for one in values):
            raise self.fault(name, "texts", value)
        return tuple(str(one).strip() for one in values if str(one or "").strip())

    def letter(self, name: str, among: int) -> str:
        """Return a column that must be the letter of one of so many choices.

        Raises:
            AxpoError: it is something else.
        """
        letter = self.text(name).strip("()").upper()
        if len(letter) != 1 or not 0 <= ord(letter) - ord("A") < among:
            raise self.fault(name, f"the letter of one of {among} choices", letter)
        return letter

    def picture(self, name: str) -> LazyImage | None:
        """Return the picture of a column, which is a path; None if the column is empty."""
        return self.picture_of(self.get(name), name) if self.has(name) else None

    def picture_of(self, path: Any, name: str) -> LazyImage:
        """Return the picture at a path, of the column `name`.

        Raises:
            AxpoError: it is no path of a file below the benchmark's folders.
        """
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise self.fault(name, "a path below the folder", path)
        for folder in self._folders:
            if (folder / path).is_file():
                return LazyImage(partial(_decode, folder / path, self.where))
        raise AxpoError(f"{self.where}: {name}: {self._folders[0] / path} is not there")

    def fault(self, name: str, expected: str, found: Any) -> AxpoError:
        """Return the error of a column that is not what it should be."""
        return AxpoError(f"{self.where}: {name}: expected {expected}, found {str(found)[:80]!r}")


def folder_of(data: Path, hub: str, also: Sequence[str] = ()) -> Path:
    """Return the folder below `data` with the files of a data set of the hub.

    Its name is the data set's, or one of `also`, whatever its case and punctuation; or the one that
    the hub's cache gives it.

    Raises:
        AxpoError: there is none; says how to get the files.
    """
    owner, _, name = hub.partition("/")
    wanted = {_plain(one) for one in (name, f"datasets{owner}{name}", *also)}
    folders = [data] if _plain(data.name) in wanted else []
    if data.is_dir():
        folders += sorted(path for path in data.iterdir() if path.is_dir())
    for folder in folders:
        if _plain(folder.name) in wanted:
            return folder
    raise AxpoError(f"{data / name} is not there; {download(hub, data / name)}")


def find_files(data: Path, hub: str, pattern: str, also: Sequence[str] = ()) -> list[Path]:
    """Return the files of a data set that match a pattern, in the order of their names.

    Raises:
        AxpoError: there is none; says how to get the files.
    """
    folder = folder_of(data, hub, also)
    found = sorted(path for path in folder.rglob(pattern) if not _is_hidden(path, folder))
    if not found:
        raise AxpoError(
            f"{folder}: no {pattern} in it{_others(folder, pattern)}; {download(hub, folder)}"
        )
    return found


def download(hub: str, folder: Path) -> str:
    """Return how to get the files of a data set into a folder."""
    return f"get it with: hf download {hub} --repo-type dataset --local-dir {folder}"


def _others(folder: Path, pattern: str) -> str:
    """Return which files of the same kind are there, those of another split for example."""
    found = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob(f"*{Path(pattern).suffix}")
        if not _is_hidden(path, folder)
    )
    more = " ..." if len(found) > NAMED else ""
    return f" (it has {', '.join(found[:NAMED])}{more})" if found else ""


def table_rows(files: Sequence[Path], pictures: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of parquet or TSV files. Columns with pictures become names of files.

    Raises:
        AxpoError: a file cannot be read, or there is no room to unpack it.
    """
    for file in files:
        cache = file.parent / CACHE
        try:
            folder = unpacked(file, pictures, cache)
        except ValueError as error:
            raise AxpoError(f"{file}: {error}") from None
        except OSError as error:
            raise _no_room(file, cache, error) from None
        for number, values in enumerate(_json_lines(folder / ROWS), 1):
            yield Row(values, f"{file}, row {number}", [folder, file.parent, file.parent.parent])


def json_rows(file: Path, pictures: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a file: one JSON array of objects, or one object a line.

    Args:
        file: the file.
        pictures: columns that may hold pictures in base64. These become names of files.

    Raises:
        AxpoError: the file is something else, or there is no room for its pictures.
    """
    try:
        text = read_plain(file, LARGEST).decode(errors="replace")
    except (NotPlain, OSError) as error:
        raise AxpoError(f"{file}: {error}") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AxpoError(f"{file}: not JSON: {error}") from None
    else:
        rows = _json_lines(file)
    # Some sets write the name of their own folder into the paths of pictures.
    cache = file.parent / CACHE / PICTURES
    folders = [file.parent, file.parent.parent, cache]
    for number, values in enumerate(rows, 1):
        where = f"{file}, row {number}"
        if not isinstance(values, dict):
            raise AxpoError(f"{where}: expected an object, found {type(values).__name__}")
        held = [name for name in pictures if name in values]
        try:
            files = {name: save_picture(values[name], cache) for name in held}
        except OSError as error:
            raise _no_room(file, cache, error) from None
        yield Row({**values, **files}, where, folders)


def _json_lines(file: Path) -> Iterator[Any]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise AxpoError(f"{file}, line {number}: not JSON: {error}") from None


def _no_room(file: Path, cache: Path, error: OSError) -> AxpoError:
    return AxpoError(f"{file}: cannot be unpacked into {cache}: {error.strerror or error}")


def _decode(file: Path, where: str) -> Pixels:
    try:
        return decode(file, LIMITS)
    except ImageError as error:
        raise UnusableQuestion(f"{where}: {file.name} {error}") from None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
