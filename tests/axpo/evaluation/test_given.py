"""A search by the question's picture over the results that a benchmark brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.evaluation.benchmark import benchmarks
from axpo.evaluation.given import KIND, NAME
from axpo.evaluation.suite import Options, prepare
from axpo.tasks.judge import judges
from tests.axpo.evaluation import invented
from tool_server.tool import ToolCall, ToolError, tool_kinds

DEBUG = Path("deploy/recipes/debug.yaml")


def search(folder, *images):
    tool = tool_kinds.parse({"kind": KIND, "folder": str(folder)}).open(NAME)
    return tool.run(ToolCall(tool.parse({}), images))


def test_the_tool_finds_what_came_with_the_question_of_the_picture(tmp_path):
    invented.hr_mmsearch(tmp_path)
    invented.mmsearch(tmp_path)
    given = tmp_path / "given"
    items = {item.id: item for item in benchmarks.parse("hr-mmsearch").load(tmp_path)}
    (seen,) = [image.read() for image in items["1"].question("b", given).images]
    text, images = search(given, seen, np.zeros((9, 9, 3), np.uint8))
    assert text == "1. Race banner\n2. Another race"
    assert [image.shape for image in images] == [(216, 384, 3)]
    items = {item.id: item for item in benchmarks.parse("mmsearch").load(tmp_path)}
    (seen,) = [image.read() for image in items["news_1"].question("b", given).images]
    text, images = search(given, seen)
    assert text == "1. Results of the image search"
    assert [image.shape for image in images] == [(60, 90, 3)]
    # Without results, and without a picture.
    assert search(given, np.ones((5, 5, 3), np.uint8)) == ("No results.", ())
    with pytest.raises(ToolError, match="the question has no image to search by"):
        search(given)


def test_nothing_is_written_for_questions_without_results(tmp_path):
    invented.vstar(tmp_path)
    (first, _) = benchmarks.parse("vstar").load(tmp_path)
    first.question("b", tmp_path / "given").images[0].read()
    assert not (tmp_path / "given").exists()


def test_the_command_offers_the_tool_if_it_is_asked_to(tmp_path):
    invented.hr_mmsearch(tmp_path)
    recipe, exact = load_recipe(DEBUG), judges.parse("exact")

    def ready(**options):
        chosen = Options(["hr-mmsearch"], tmp_path, exact, out=tmp_path / "out", **options)
        return prepare(DEBUG, recipe, recipe.model, chosen)

    assert ready().settings["tools"] == ["image_zoom_in"]
    found = ready(image_search=True)
    assert found.settings["tools"] == ["image_zoom_in", "image_search"]
    tool = found.recipe.evaluation.tools["image_search"]
    assert (tool.kind, tool.options) == (KIND, {"folder": str(tmp_path / "out" / "given")})
    assert "image_search" in found.recipe.all_tools.tools
    own = recipe.evaluation.model_copy(update={"tools": {NAME: tool}})
    recipe = recipe.model_copy(update={"evaluation": own})
    with pytest.raises(AxpoError, match="--image-search: the recipe has a tool image_search"):
        ready(image_search=True)
