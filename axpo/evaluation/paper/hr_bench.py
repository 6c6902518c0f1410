"""HR-Bench: choices about details of pictures of 4K and 8K, the options in four rotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from axpo.evaluation.answers import chosen, final_text
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.rows import Row, find_files, folder_of, table_rows

QUESTIONS, ROTATIONS = 200, 4
_CATEGORIES = {"single": "single instance", "cross": "cross instance"}


class HRBench(Benchmark):
    """One resolution; both lie in one data set of the hub.

    The official score is the mean of the accuracies of the four rotations, not the share of
    questions that are right in all four.
    """

    hub = "DreamMr/HR-Bench"
    licence = "other; its file is empty"
    resolution: ClassVar[str]

    rotations: Literal["one", "all"] = Field(
        "one", description="one: each question once; all: with its options in four orders"
    )

    @property
    def expected(self) -> int:
        """Return the rows of the chosen rotations."""
        return QUESTIONS if self.rotations == "one" else QUESTIONS * ROTATIONS

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of the chosen rotations, in the order of the file."""
        for row in table_rows(self._files(data), ["image"]):
            # Public copies have it as a number and as a text.
            if self.rotations == "all" or row.text("cycle_category") == "0":
                yield _item(row)

    def _files(self, data: Path) -> list[Path]:
        name = f"hr_bench_{self.resolution}"
        folder = folder_of(data, self.hub, self.also)
        # Both have the same rows. The parquet file is the smaller one, and the one that is named
        # if neither is there.
        only_tsv = not any(folder.rglob(f"{name}.parquet")) and any(folder.rglob(f"{name}.tsv"))
        kind = "tsv" if only_tsv else "parquet"
        return find_files(data, self.hub, f"{name}.{kind}", self.also)

    def score(self, item: Item, answer: str) -> Score:
        """Compare the letter or the words of the choice; a judge reads what is neither."""
        position = chosen(final_text(answer), item.options)
        if position is None:
            return Score(None)
        return Score(chr(ord("A") + position) == item.accepted[0])


@benchmarks.register("hrbench-4k")
class FourK(HRBench):
    """200 questions about pictures of 4K, in one rotation of the options or four."""

    title = "HR-Bench 4K"
    also = ("HR-Bench-4K",)
    resolution = "4k"


@benchmarks.register("hrbench-8k")
class EightK(HRBench):
    """200 questions about pictures of 8K (33 megapixels), in one rotation or four."""

    title = "HR-Bench 8K"
    also = ("HR-Bench-8K",)
    resolution = "8k"


def _item(row: Row) -> Item:
    options = tuple(row.text(letter) for letter in "ABCD")
    question, image = row.text("question"), row.picture("image")
    if image is None:
        raise row.fault("image", "a picture", None)
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    category = row.text("category")
    return Item(
        id=row.text("index"),
        text="\n".join([question, *lines]),
        images=(image,),
        accepted=(row.letter("answer", len(options)),),
        options=options,
        categories={"category": _CATEGORIES.get(category, category)},
        # Equal pictures have one file, named by its content.
        cluster=f"{row.text('image')}/{question}",
    )
