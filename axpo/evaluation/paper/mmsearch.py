"""MMSearch, end to end: questions that need a search, with a picture or without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from axpo.errors import AxpoError
from axpo.evaluation.answers import f1, final_text
from axpo.evaluation.benchmark import Benchmark, Item, Score, benchmarks
from axpo.evaluation.rows import Row, download, find_files, folder_of, table_rows


@benchmarks.register("mmsearch")
class MMSearch(Benchmark):
    """300 questions of 14 fields that need a search; also the official F1 (no licence stated)."""

    title = "MMSearch"
    hub = "CaraJ/MMSearch"
    needs_judge = True
    needs_search = True

    @property
    def expected(self) -> int:
        """Return the rows of `end2end`, those without a picture included."""
        return 300

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows of `end2end`."""
        files = find_files(data, self.hub, "*.parquet", self.also)
        # The other parts, rerank and summarization, lie beside it.
        files = [file for file in files if "end2end" in f"{file.parent.name}/{file.name}"]
        if not files:
            folder = folder_of(data, self.hub, self.also)
            raise AxpoError(f"{folder}: no end2end*.parquet in it; {download(self.hub, folder)}")
        for row in table_rows(files, ["query_image", "image_search_result"]):
            yield _item(row)

    def score(self, item: Item, answer: str) -> Score:
        """Compare with any accepted answer, else let a judge say; and give the official F1."""
        columns = {"f1": f1(final_text(answer), item.accepted)}
        return Score(super().score(item, answer).right, columns)


def _item(row: Row) -> Item:
    image = row.picture("query_image")
    found = row.picture("image_search_result")
    others = row.texts("alternative_gt_answers") if row.has("alternative_gt_answers") else ()
    return Item(
        id=row.text("sample_id"),
        text=row.text("query"),
        images=() if image is None else (image,),
        accepted=(row.text("gt_answer"), *others),
        categories={"area": row.text("area"), "subfield": row.text("subfield")},
        # One picture: the page of results.
        found_by_image=() if found is None else (("Results of the image search", found),),
    )
