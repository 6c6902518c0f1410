"""V*: small things in large photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from axpo.evaluation.answers import chosen, final_text
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.rows import Row, find_files, folder_of, json_rows, table_rows
from axpo.tasks import choices

_DIRECTLY = "Answer with the option's letter from the given choices directly."


@benchmarks.register("vstar")
class VStar(Benchmark):
    """191 questions about attributes and places of small things (no licence stated)."""

    title = "V*"
    hub = "craigwu/vstar_bench"
    also = ("VStar", "V*")

    @property
    def expected(self) -> int:
        """Return the rows of the test file."""
        return 191

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of the test file, not of the files beside the pictures.

        In those the first option is always the right one.
        """
        for row in self._rows(data):
            yield _item(row)

    def _rows(self, data: Path) -> Iterator[Row]:
        name = "test_questions.jsonl"
        folder = folder_of(data, self.hub, self.also)
        # A public copy has the same rows, with their pictures, in a parquet file.
        if not any(folder.rglob(name)) and any(folder.rglob("*.parquet")):
            yield from table_rows(find_files(data, self.hub, "*.parquet", self.also), ["image"])
            return
        for file in find_files(data, self.hub, name, self.also):
            yield from json_rows(file)

    def score(self, item: Item, answer: str) -> Score:
        """Compare the letter or the words of the choice; a judge reads what is neither."""
        position = chosen(final_text(answer), item.options)
        if position is None:
            return Score(None)
        return Score(chr(ord("A") + position) == item.accepted[0])


def _item(row: Row) -> Item:
    # The sentence forbids thinking.
    text = row.text("text").replace(_DIRECTLY, "").strip()
    options = tuple(choices.options(text).values())
    if not options:
        raise row.fault("text", "options, (A) ... (B) ...", text)
    image = row.picture("image")
    if image is None:
        raise row.fault("image", "a picture", None)
    return Item(
        id=row.text("question_id"),
        text=text,
        images=(image,),
        accepted=(row.letter("label", len(options)),),
        options=options,
        categories={"category": row.text("category")},
    )
