"""VisualProbe: short answers about details of very large pictures, in three difficulties."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from axpo.evaluation.benchmark import Benchmark, Item, benchmarks
from axpo.evaluation.rows import Row, find_files, json_rows

_MARK = "<image>"


class VisualProbe(Benchmark):
    """One difficulty; each is a data set of its own on the hub."""

    needs_judge = True
    rows: ClassVar[int | None] = None

    @property
    def expected(self) -> int | None:
        """Return the rows of this difficulty, if known."""
        return self.rows

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of val.json."""
        for file in find_files(data, self.hub, "val.json", self.also):
            for row in json_rows(file):
                yield _item(row)


@benchmarks.register("visualprobe-easy")
class Easy(VisualProbe):
    """VisualProbe, easy (no licence stated)."""

    title = "VisualProbe Easy"
    hub = "Mini-o3/VisualProbe_Easy"


@benchmarks.register("visualprobe-medium")
class Medium(VisualProbe):
    """VisualProbe, medium (no licence stated)."""

    title = "VisualProbe Medium"
    hub = "Mini-o3/VisualProbe_Medium"


@benchmarks.register("visualprobe-hard")
class Hard(VisualProbe):
    """VisualProbe, hard: 106 questions, the paper's (no licence stated)."""

    title = "VisualProbe Hard"
    hub = "Mini-o3/VisualProbe_Hard"
    rows = 106


def _item(row: Row) -> Item:
    paths = row.texts("images")
    return Item(
        id=row.text("doc_id"),
        text=row.text("problem").replace(_MARK, "").strip(),
        images=tuple(row.picture_of(path, "images") for path in paths),
        accepted=(row.text("solution"),),
    )
