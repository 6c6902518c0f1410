"""`image_search` finds each label by its number, and says of it what `search` would say."""

import json

import numpy as np
from PIL import Image

from axpo.tasks.embedded.labels import write
from axpo.tasks.embedded.small_fact import wines
from tool_server.search.build import build
from tool_server.search.tools import ImageSearch
from tool_server.tool import ToolCall


def test_every_label_is_found_by_its_number(tmp_path):
    folder = tmp_path / "labels"
    assert write(folder) == 178
    first = (folder / "wine-7.jpg").read_bytes()
    assert write(folder) == 178
    assert (folder / "wine-7.jpg").read_bytes() == first
    assert len((folder / "captions.jsonl").read_text().splitlines()) == 178
    build(folder, tmp_path / "labels.index")
    kind = ImageSearch(index=str(tmp_path / "labels.index"), max_images=1)
    tool = kind.open("image_search")
    try:
        for wine in wines().values():
            text, images = tool.run(
                ToolCall(tool.parse({"query": f"wine {wine.number}", "max_results": 1}))
            )
            assert wine.text in text
            if wine.number % 30 == 0:
                assert np.array_equal(images[0], np.asarray(Image.open(folder / f"{wine.id}.jpg")))
    finally:
        tool.close()


def test_captions_are_rows_of_an_image_corpus(tmp_path):
    write(tmp_path)
    row = json.loads((tmp_path / "captions.jsonl").read_text().splitlines()[13])
    assert row == {
        "file": "wine-14.jpg",
        "caption": wines()[14].text,
        "title": "Label of Wine 14",
        "id": "wine-14",
    }
