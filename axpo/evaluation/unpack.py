"""Unpack a parquet or TSV file into a folder: its rows as JSON lines, its pictures as files.

    rows.jsonl       the rows; a picture is the name of its file
    <digest>.img     one file a picture, as it was encoded: equal pictures share one

A picture of such a file cannot be read alone: those of HR-Bench lie in pages of gigabytes. So a
file is unpacked once, and what is large in a process of its own, whose memory is given back.

Standard library and pyarrow only: that process starts quickly.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROWS = "rows.jsonl"
SMALL = 32 << 20
"""Bytes of a file that is unpacked in this process."""

SHORTEST = 100
"""Characters of a picture in base64; a path may be base64 by accident: `images/1`."""

LONGEST_CELL = 1 << 28
"""Characters of a cell of a TSV file: a picture in base64."""


def unpacked(file: Path, pictures: Sequence[str], cache: Path) -> Path:
    """Return the folder of a table's rows; the first call unpacks it.

    Args:
        file: a parquet file, or one with tabs between its columns (.tsv).
        pictures: the columns with pictures: what `datasets` stores, bytes or base64.
        cache: where unpacked files are kept.

    Raises:
        OSError: the file cannot be read, or the folder cannot be written.
        ValueError: the file is no such table, or lacks a column.
    """
    stat = file.stat()
    of_file = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{','.join(pictures)}"
    digest = hashlib.sha1(of_file.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    folder = cache / f"{file.stem}-{digest}"
    if (folder / ROWS).is_file():
        return folder
    if stat.st_size <= SMALL:
        unpack(file, pictures, folder)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            process.submit(unpack, file, pictures, folder).result()
    return folder


def unpack(file: Path, pictures: Sequence[str], folder: Path) -> None:
    """Write the folder of a table, all or nothing; see `unpacked`."""
    # Another evaluation may unpack the same file at the same time.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        table = _tsv_rows(file) if file.suffix == ".tsv" else _parquet_rows(file)
        with (partial / ROWS).open("w", encoding="utf-8") as rows:
            for row in table:
                _check_columns(pictures, row)
                files = {name: save_picture(row[name], partial) for name in pictures}
                rows.write(json.dumps({**row, **files}, ensure_ascii=False, default=str) + "\n")
        _publish(partial, folder)
    finally:
        # Also if the disk is full: what is there of it would take room for nothing.
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        # Another evaluation was faster, with the same rows.
        if not (folder / ROWS).is_file():
            raise


def save_picture(picture: Any, folder: Path) -> Any:
    """Write a picture as it is encoded, once.

    Args:
        picture: bytes, base64, what `datasets` stores, a path, or a list of these.
        folder: where its file is written; it is made if there is a picture to write.

    Returns:
        Its file's name; a path as it is; None if there is no picture; of a list a list.
    """
    if isinstance(picture, list):
        return [save_picture(one, folder) for one in picture if one]
    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str):
        picture = _decoded(picture)
    if not isinstance(picture, bytes) or not picture:
        return picture or None
    file = folder / f"{hashlib.sha1(picture).hexdigest()[:20]}.img"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_bytes(picture)
        temporary.rename(file)
    return file.name


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Without buffers for whole columns: a page at a time is enough.
        source = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        for batch in source.iter_batches(batch_size=8):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"cannot be read: {' '.join(str(error).split())[:200]}") from None


def _tsv_rows(file: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        table = csv.reader(lines, delimiter="\t")
        try:
            names = next(table, [])
            for cells in table:
                if cells and len(cells) != len(names):
                    raise ValueError(
                        f"line {table.line_num}: expected {len(names)} columns, found {len(cells)}"
                    )
                if cells:
                    yield dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise ValueError(f"line {table.line_num}: cannot be read: {error}") from None


def _check_columns(wanted: Sequence[str], found: Iterable[str]) -> None:
    names = list(found)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"no column {missing[0]}; it has {', '.join(names)[:200]}")


def _decoded(text: str) -> bytes | str:
    """Return the bytes of base64; any other text is a path, and stays."""
    if len(text) < SHORTEST:
        return text
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except binascii.Error:
        return text
