"""HR-MMSearch: questions that need a detail of a 4K picture and a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.benchmark import Benchmark, Item, benchmarks
from axpo.evaluation.given import Result
from axpo.evaluation.rows import Row, download, find_files, folder_of, json_rows, table_rows

_QUESTIONS = ("query", "question")
_PICTURES = ("query_image", "image", "image_path")
_TITLES, _THUMBNAILS = "image_search_title_list", "image_search_thumbnail_list"
_MARK = "<image>"


@benchmarks.register("hr-mmsearch")
class HRMMSearch(Benchmark):
    """305 questions about 4K pictures of 2025 that need a search (repository: MIT)."""

    title = "HR-MMSearch"
    hub = "sensenova/HR-MMSearch"
    licence = "MIT (its repository)"
    needs_judge = True
    needs_search = True

    @property
    def expected(self) -> int:
        """Return the rows."""
        return 305

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the rows, in the hub's form or in that of the authors' evaluation."""
        for number, row in enumerate(self._rows(data), 1):
            yield _item(row, str(number))

    def _rows(self, data: Path) -> Iterator[Row]:
        folder = folder_of(data, self.hub, self.also)
        if any(folder.rglob("*.parquet")):
            files = find_files(data, self.hub, "*.parquet", self.also)
            yield from table_rows(files, [_picture_column(files[0])])
            return
        if not any(folder.rglob("*.json*")):
            raise AxpoError(
                f"{folder}: no parquet or JSON file in it; {download(self.hub, folder)}"
            )
        for file in find_files(data, self.hub, "*.json*", self.also):
            for row in json_rows(file, _PICTURES):
                # Beside the questions lie other files, for example lists of results.
                if any(row.has(name) for name in (*_QUESTIONS, "prompt")):
                    yield row


def _item(row: Row, number: str) -> Item:
    images = []
    for name in _PICTURES:
        if row.has(name):
            images = [row.picture_of(path, name) for path in row.texts(name)]
            break
    return Item(
        id=number,
        text=_question(row).replace(_MARK, "").strip(),
        images=tuple(images),
        accepted=_answers(row),
        found_by_image=_found(row),
    )


def _found(row: Row) -> tuple[Result, ...]:
    """Return what a search by the picture had found, in the authors' form."""
    titles = row.texts(_TITLES) if row.has(_TITLES) else ()
    paths = row.texts(_THUMBNAILS) if row.has(_THUMBNAILS) else ()
    images = [row.picture_of(path, _THUMBNAILS) for path in paths]
    return tuple(zip_longest(titles, images)) if len(images) <= len(titles) else ()


def _question(row: Row) -> str:
    for name in _QUESTIONS:
        if row.has(name):
            return row.text(name)
    prompt = row.get("prompt")
    try:
        content: Any = prompt if isinstance(prompt, str) else prompt[0]["content"]
    except (LookupError, TypeError):
        content = None
    if not isinstance(content, str) or not content.strip():
        raise row.fault("prompt", "a text, or a list of messages", prompt)
    return content


def _answers(row: Row) -> tuple[str, ...]:
    found = row
    model = None if row.has("ground_truth") else row.get("reward_model")
    if isinstance(model, Mapping):
        found = Row(model, f"{row.where}: reward_model", [])
    answers = found.texts("ground_truth")
    if not answers:
        raise row.fault("ground_truth", "an answer", None)
    return answers


def _picture_column(file: Path) -> str:
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(file).names
    for name in _PICTURES:
        if name in names:
            return name
    raise AxpoError(f"{file}: no column {' or '.join(_PICTURES)}; it has {', '.join(names)}")
