"""What makes a checkpoint whole: a manifest of its files, with sizes and hashes, written last.

A folder is written as `.<name>.partial`, every file is flushed to the disk, the manifest lists
them, and one rename makes it a checkpoint. DeepSpeed alone writes in place, without a checksum: a
save that was killed or met a full disk looks like a checkpoint there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

S = TypeVar("S")
T = TypeVar("T")
NAME = "manifest.json"

Entries: TypeAlias = dict[str, dict[str, Any]]
"""Size in bytes and SHA-256 of each file, by its name."""
Gather: TypeAlias = Callable[[Any], list[Any]]
"""Returns what every rank gave it, in their order. Collective."""


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written; one line that names the file."""


def partial(folder: Path) -> Path:
    """Return where a checkpoint is written before it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def begin(folder: Path) -> Path:
    """Make the partial folder of a checkpoint, empty, and return it."""
    temporary = partial(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def clean(parent: Path) -> None:
    """Delete what killed saves left among the checkpoints of `parent`. Nothing may be saving."""
    for leftover in parent.glob(".*.partial"):
        shutil.rmtree(leftover)


def files(folder: Path) -> list[Path]:
    """Return all files of a checkpoint but its manifest, in a fixed order, relative to it."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != NAME]
    return sorted(path.relative_to(folder) for path in found)


def digests(folder: Path, names: Sequence[Path]) -> Entries:
    """Flush each file to the disk and return its size in bytes and its SHA-256."""

    def digest(name: Path) -> dict[str, Any]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            return {
                "bytes": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }

    return dict(zip(map(str, names), _side_by_side(digest, names), strict=True))


def seal(folder: Path, entries: Entries, about: Mapping[str, Any]) -> None:
    """Write the manifest of the partial folder and give the folder its name.

    Args:
        folder: the checkpoint.
        entries: of all its files.
        about: what a reader should know before loading.
    """
    temporary = partial(folder)
    with (temporary / NAME).open("w", encoding="utf-8") as file:
        json.dump({**about, "files": dict(sorted(entries.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    # The names of the files must be on the disk before the folder gets its own.
    for directory in {path.parent for path in temporary.rglob("*")}:
        _sync(directory)
    temporary.rename(folder)
    _sync(folder.parent)


def finish(
    folder: Path,
    writes: Sequence[Callable[[], object]],
    about: Mapping[str, Any],
    rank: int,
    gather: Gather,
) -> None:
    """Write what is left to write, hash the files and seal the checkpoint. Collective.

    All ranks raise what one of them raised: none waits for it in vain.

    Args:
        folder: the checkpoint; its partial folder exists.
        writes: the files that this rank has still to write.
        about: see `seal`.
        rank: this rank; it hashes its share of the files.
        gather: over all ranks.
    """

    def write_all() -> None:
        for write in writes:
            write()

    temporary = partial(folder)
    # Each of these waits for all ranks: what is hashed is written, and what is sealed is hashed.
    ranks = len(_together(write_all, gather))
    # One rank lists the files: the others, on other nodes, may have older lists in their caches.
    names = _together(lambda: files(temporary) if rank == 0 else [], gather)[0]
    shares = _together(lambda: digests(temporary, names[rank::ranks]), gather)
    entries: Entries = {}
    for share in shares:
        entries |= share
    _together(lambda: seal(folder, entries, about) if rank == 0 else None, gather)


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest.

    Raises:
        DamagedCheckpoint: there is none, or it is not JSON.
    """
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{folder / NAME}: {type(error).__name__}") from None
    entries = manifest.get("files") if isinstance(manifest, dict) else None
    is_list = isinstance(entries, dict) and all(map(_is_entry, entries.values()))
    if not is_list:
        raise DamagedCheckpoint(f"{folder / NAME}: no list of files")
    found: dict[str, Any] = manifest
    return found


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def verify(folder: Path) -> dict[str, Any]:
    """Read every byte of a checkpoint and return its manifest.

    Raises:
        DamagedCheckpoint: a file is not what was written.
    """
    manifest = read(folder)

    def check(name: str) -> None:
        path, entry = folder / name, manifest["files"][name]
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: missing")
        # A truncated file needs no reading.
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DamagedCheckpoint(f"{path}: {size} bytes, {entry['bytes']} were written")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise DamagedCheckpoint(f"{path}: its content has changed")

    _side_by_side(check, list(manifest["files"]))
    return manifest


def remove(folder: Path) -> None:
    """Delete a checkpoint; a kill in between leaves no folder that looks like one."""
    # Under this name it is a leftover, which `clean` removes.
    doomed = partial(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _together(work: Callable[[], Any], gather: Gather) -> list[Any]:
    """Return the results of all ranks, or raise what the first of them raised. Collective."""
    try:
        mine = work()
    except Exception as error:  # it is raised below, on all ranks
        mine = error
    results = gather(mine)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _side_by_side(work: Callable[[S], T], names: Sequence[S]) -> list[T]:
    """Work on all names in threads: hashing and reading hold no interpreter lock.

    Raises:
        Exception: what the first in order raised.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(work, names))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
