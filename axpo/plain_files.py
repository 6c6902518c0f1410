"""Read files whose names or content come from elsewhere: plain files only, inside one folder."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path


class NotPlain(Exception):
    """A path that is not a regular file inside its folder; one line that says what it is."""


def inside(folder: Path, name: str) -> Path:
    """Return the file of this name, if it is inside the folder after all links.

    Raises:
        NotPlain: it is not, or the name cannot be one.
    """
    try:
        real = Path(os.path.realpath(folder / name))
        root = Path(os.path.realpath(folder))
    except (OSError, ValueError):  # a NUL, or a loop of links
        raise NotPlain("is no name of a file") from None
    if not real.is_relative_to(root):
        raise NotPlain(f"leaves the folder {folder}")
    return real


def inside_model(folder: Path, name: str) -> Path:
    """Return the file of this name of a model folder, if no link leads out of the folder.

    A snapshot in the hub's cache is links to the files of its repository, two folders up.

    Raises:
        NotPlain: see `inside`.
    """
    real = Path(os.path.realpath(folder / name))
    is_snapshot = folder.parent.name == "snapshots"
    if is_snapshot and real.is_relative_to(os.path.realpath(folder.parent.parent)):
        return real
    return inside(folder, name)


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    A pipe would be waited for, and a device read for ever.

    Raises:
        NotPlain: it is something else.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlain("is no regular file")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most so many bytes.

    Raises:
        NotPlain: it is something else, or longer.
        OSError: it cannot be read.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise NotPlain(f"is larger than {most:,} bytes")
    return content
