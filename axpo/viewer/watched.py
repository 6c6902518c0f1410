"""A run as the viewer knows it: its directory, its catalog, and what was made of it already."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from axpo.catalog.fill import files_of
from axpo.catalog.search import Catalog
from axpo.errors import AxpoError
from axpo.record.files import read_text
from axpo.record.lock import is_held
from axpo.record.run import RunDirectory
from axpo.record.summary import read_summary
from axpo.viewer.pictures import Pictures

RECENT_S = 300
"""A run of another machine counts as running if it wrote within these seconds."""
MOST_RUNS = 24
"""That one viewer shows: more lines in a chart are told apart by nobody."""

Made = TypeVar("Made")


class Memory:
    """Keeps what was made of files until the files change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Any]] = {}
        self._lock = Lock()

    def get(self, name: str, signature: str, make: Callable[[], Made]) -> Made:
        """Return what `make` returns, which is called only if there is another signature now."""
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != signature:
            known = (signature, make())
            with self._lock:
                self._known[name] = known
        made: Made = known[1]
        return made


class Watched:
    """One run of the viewer.

    Attributes:
        index: its place among the runs; addresses have it.
        name: as pages show it.
    """

    def __init__(self, index: int, name: str, path: Path, cache: Path | None = None) -> None:
        """Open a run; raise AxpoError if there is none."""
        self.index, self.name, self.path = index, name, path
        self.directory = RunDirectory.open(path)
        self.catalog = Catalog(path, cache)
        self.pictures = Pictures(f"/r/{index}/image/", self.directory.images)
        self._memory = Memory()

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return self.directory.recipe()

    @cached_property
    def recipe_text(self) -> str:
        """The resolved recipe as it was written."""
        return read_text(self.path / "recipe.yaml")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the numbers of all steps."""
        return self.remember("metrics", self.directory.metrics)

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a run that ended."""
        return read_summary(self.path)

    def remember(self, name: str, make: Callable[[], Made]) -> Made:
        """Return what `make` returns, which is called only if the metrics have changed."""
        return self._memory.get(name, self.signature(), make)

    def state(self) -> str:
        """Return `ended`, `running` or `stopped`."""
        if (self.path / "summary.json").exists():
            return "ended"
        if is_held(self.path):
            return "running"
        latest = max(_changed(self.path / name) for name in ("metrics.jsonl", "rollouts.jsonl"))
        return "running" if time.time() - latest < RECENT_S else "stopped"

    def unread(self) -> tuple[int, int]:
        """Return how many files of groups are not in the catalog yet, and how many there are."""
        files = files_of(self.path)
        _, known = self.catalog.size()
        return max(files - known, 0), files

    def version(self) -> str:
        """Return a text that changes whenever pages of the run may look different."""
        groups, files = self.catalog.size()
        return f"{self.signature()}.{groups}.{files}.{self.state()}"

    def signature(self) -> str:
        """Return a text that changes when the metrics do."""
        try:
            found = os.stat(self.path / "metrics.jsonl")
        except OSError:
            return "-"
        return f"{found.st_mtime_ns:x}.{found.st_size:x}"


def watch(paths: Sequence[Path], cache: Path | None = None) -> list[Watched]:
    """Open runs. A folder that is no run itself stands for the runs in it, the newest first.

    Raises:
        AxpoError: there is no run, or there are too many.
    """
    found: list[Path] = []
    for path in paths:
        found += [path] if (path / "recipe.yaml").is_file() else _runs_in(path)
    found = list(dict.fromkeys(found))
    if len(found) > MOST_RUNS:
        raise AxpoError(f"{len(found)} runs; expected {MOST_RUNS} at most: name them")
    # The last part of a path is its name, unless another run has the same.
    names = [path.resolve().name for path in found]
    unique = len(set(names)) == len(names)
    shown = names if unique else [str(path) for path in found]
    return [Watched(i, shown[i], path, cache) for i, path in enumerate(found)]


def _runs_in(folder: Path) -> list[Path]:
    runs = [file.parent for file in folder.glob("*/recipe.yaml")]
    if not runs:
        raise AxpoError(f"{folder} is no run directory, and has none in it")
    return sorted(runs, key=lambda run: _changed(run / "recipe.yaml"), reverse=True)


def _changed(file: Path) -> float:
    """Return when a file was written last; 0 if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
