"""What makes a checkpoint whole: a manifest of its files with sizes and hashes, written last, before the folder gets its name.

A folder is written as `.<name>.partial`, every file is flushed to the disk, the manifest lists them, and one rename makes it
a checkpoint. DeepSpeed alone writes in place, without a checksum: a killed or full-disk save there looks like a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
NAME = "manifest.json"


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written; one line that names the file."""


def partial(folder: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def begin(folder: Path) -> Path:
    """The partial folder of a checkpoint, empty."""
    temporary = partial(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def clean(parent: Path) -> None:
    """Delete what saves that were killed left among the checkpoints of `parent`. Nothing may be saving."""
    for leftover in parent.glob(".*.partial"):
        shutil.rmtree(leftover)


def files(folder: Path) -> list[Path]:
    """All files of a checkpoint but its manifest, in a fixed order, relative to it."""
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME
    )


def digests(folder: Path, names: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Flush each file to the disk; returns its size in bytes and its SHA-256."""

    def digest(name: Path) -> dict[str, Any]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            return {
                "bytes": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }

    return dict(zip(map(str, names), _side_by_side(digest, names), strict=True))


def seal(folder: Path, entries: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the manifest of the partial folder and give it its name. `about`: what a reader should know before loading."""
    temporary = partial(folder)
    with (temporary / NAME).open("w", encoding="utf-8") as file:
        json.dump({**about, "files": dict(sorted(entries.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for directory in {path.parent for path in temporary.rglob("*")}:
        _sync(directory)
    temporary.rename(folder)
    _sync(folder.parent)


def finish(
    folder: Path,
    writes: Sequence[Callable[[], object]],
    about: Mapping[str, Any],
    rank: int,
    gather: Callable[[Any], list[Any]],
) -> None:
    """Do the writes that a rank has left in the partial folder, hash the rank's share of its files, and seal it. Collective.

    `gather` returns what every rank gave it, in their order. Raises on all ranks what one of them raised: none waits for it in vain.
    """

    def together(work: Callable[[], Any]) -> list[Any]:
        try:
            mine = work()
        except Exception as error:
            mine = error
        results = gather(mine)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def write_all() -> None:
        for write in writes:
            write()

    ranks = len(together(write_all))
    temporary = partial(folder)
    shares = together(lambda: digests(temporary, files(temporary)[rank::ranks]))
    entries = {name: entry for share in shares for name, entry in share.items()}
    together(lambda: seal(folder, entries, about) if rank == 0 else None)


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises DamagedCheckpoint where there is none or it is not JSON."""
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder / NAME}: {type(error).__name__}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedCheckpoint(f"{folder / NAME}: no list of files")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are exactly those that were written. Raises DamagedCheckpoint; reads every byte."""
    manifest = read(folder)

    def check(name: str) -> None:
        path, entry = folder / name, manifest["files"][name]
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: missing")
        if path.stat().st_size != entry["bytes"]:
            raise DamagedCheckpoint(
                f"{path}: {path.stat().st_size} bytes, {entry['bytes']} were written"
            )
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise DamagedCheckpoint(f"{path}: its content has changed")

    _side_by_side(check, list(manifest["files"]))
    return manifest


def remove(folder: Path) -> None:
    """Delete a checkpoint; a kill in between leaves no folder that looks like one."""
    doomed = partial(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _side_by_side(work: Callable[[S], T], names: Sequence[S]) -> list[T]:
    """In threads: hashing and reading hold no interpreter lock. Raises what the first in order raised."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, names))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
