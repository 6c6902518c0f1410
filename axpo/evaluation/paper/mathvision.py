"""MathVision, split testmini: competition mathematics with a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from axpo.evaluation.answers import chosen, final_text
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.formulas import equal
from axpo.evaluation.rows import Row, find_files, table_rows
from axpo.tasks.verifiers import choice

# A row has one picture, even if its text names its panels <image1> to <image7>.
_MARK = re.compile(r"\s*<image\d+>")


@benchmarks.register("mathvision")
class MathVision(Benchmark):
    """304 competition problems of 16 subjects; formulas, numbers and choices (testmini, MIT)."""

    title = "MathVision"
    hub = "MathLLMs/MathVision"
    also = ("MATH-V", "MATH-Vision")
    licence = "MIT"

    @property
    def expected(self) -> int:
        """Return the rows of testmini."""
        return 304

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of testmini."""
        files = find_files(data, self.hub, "testmini*.parquet", self.also)
        for row in table_rows(files, ["decoded_image"]):
            yield _item(row)

    def score(self, item: Item, answer: str) -> Score:
        """Compare with the letter, or with the text of the option; else with the formula."""
        given = final_text(answer)
        if not item.options:
            return Score(equal(item.accepted[0], given))
        position = ord(item.accepted[0]) - ord("A")
        # A box with the option's value is as right as its letter.
        right = _names(given, item) == position or equal(item.options[position], given)
        return Score(right)


def _names(given: str, item: Item) -> int | None:
    """Return the option that an answer names by its letter, or in a sentence."""
    letter = choice(given.strip("{}"))
    if letter is not None:
        return ord(letter) - ord("A")
    return chosen(given, item.options)


def _item(row: Row) -> Item:
    options = row.texts("options") if row.has("options") else ()
    text = _MARK.sub("", row.text("question")).strip()
    # Options that are nothing but letters stand in the picture.
    if options and options != tuple("ABCDE"):
        lines = [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options)]
        text += "\nChoices:\n" + "\n".join(lines)
    answer = row.letter("answer", len(options)) if options else row.text("answer")
    image = row.picture("decoded_image")
    if image is None:
        raise row.fault("decoded_image", "a picture", None)
    return Item(
        id=row.text("id"),
        text=text,
        images=(image,),
        accepted=(answer,),
        options=options,
        categories={"subject": row.text("subject"), "level": row.text("level")},
    )
