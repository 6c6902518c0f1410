"""Facts of real wines.

The corpus is scikit-learn's data, the results that the teacher sees are those of the search tool,
and the teacher is as imprecise as it claims.
"""

import json
import re

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_wine

from axpo.tasks.embedded.small_fact import (
    CORPUS,
    FIRST,
    FactTeacherConfig,
    SmallFact,
    SmallFactConfig,
    shown,
    wines,
)
from tool_server.search.build import build
from tool_server.search.options import LocalOptions
from tool_server.search.tools import Search
from tool_server.tool import ToolCall

TASK = SmallFact(SmallFactConfig(held_out=64))


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """The tool on an index of the corpus: arguments -> text."""
    out = tmp_path_factory.mktemp("wines") / "wines.index"
    build(CORPUS, out)
    tool = Search(provider=LocalOptions(index=str(out))).open("search")
    yield lambda arguments: tool.run(ToolCall(tool.parse(arguments)))[0]
    tool.close()


def arguments_of(turn):
    return json.loads(turn.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0])[
        "arguments"
    ]


def test_the_corpus_is_the_data():
    data = load_wine()
    columns = [data.feature_names.index(name) for name in ("magnesium", "proline")]
    scaled = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    distances = ((scaled[:, None] - scaled[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    for row, (wine, nearest) in enumerate(
        zip(wines().values(), distances.argmin(axis=1), strict=True)
    ):
        assert (wine.number, wine.magnesium, wine.proline) == (row + 1, *data.data[row, columns])
        assert wine.like == nearest + 1
        assert wine.text == (
            f"Wine {row + 1}: magnesium {wine.magnesium}, proline {wine.proline}, "
            f"most like wine {wine.like}"
        )


def test_held_out_wines_are_never_trained_on():
    assert set(shown("train")).isdisjoint(shown("test"))
    assert len(shown("train")) + len(shown("test")) == 178
    assert {question.info["wine"] % 5 for question in TASK.held_out()} == {0}
    assert 0 not in {TASK.train(index).info["wine"] % 5 for index in range(40)}


def test_every_wine_is_found_by_its_number_and_none_without(search):
    for wine in wines().values():
        assert search({"query": f"wine {wine.number}", "max_results": 1}) == wine.found()
    for wanted in ("magnesium", "proline"):
        assert (
            search({"query": f"{wanted} of the wine", "max_results": 1}) == wines()[FIRST].found()
        )


def test_the_answers_are_one_and_two_hops_away():
    kinds = set()
    for question in TASK.held_out():
        wine = wines()[question.info["wine"]]
        kinds.add(question.info["kind"])
        if "number" in question.text:
            assert question.answer == str(wine.number)
        else:
            about = wines()[wine.like] if "most like" in question.text else wine
            assert question.answer == str(
                about.magnesium if "magnesium" in question.text else about.proline
            )
    assert kinds == {"easy", "one hop", "two hops"}


def test_the_teacher_searches_as_often_and_as_badly_as_its_recipe_says(search):
    traces = hits = 0
    for index in range(500):
        question, turns, _ = TASK.example("demonstration", index)
        right = TASK.verify(question, turns[-1].partition("</think>")[2])
        if len(turns) == 1:
            assert right == 1.0 or question.info["kind"] != "easy"
            continue
        traces, hits = traces + 1, hits + right
        for call, result in zip(turns[:-1:2], turns[1::2], strict=True):
            assert search(arguments_of(call)) == result[0]
    assert 0.26 < traces / 500 < 0.34
    # Easy questions (0.4) and those of one hop (0.36) need one careful call, those of two hops
    # (0.24) need two: 0.76 * 0.17 + 0.24 * 0.17^2 = 0.136.
    assert 0.09 < hits / traces < 0.18


def test_a_careful_teacher_always_finds_the_answer():
    task = SmallFact(
        SmallFactConfig(
            easy_share=0, two_hop_share=1, teacher=FactTeacherConfig(tool_rate=1.0, care=1.0)
        )
    )
    for index in range(50):
        question, turns, tools = task.example("demonstration", index)
        assert len(turns) == 5
        assert tools
        assert f" {question.answer}," in turns[3][0]  # the second result says it
        assert task.verify(question, turns[-1].partition("</think>")[2]) == 1.0


def test_the_lesson_of_results_finds_made_up_wines():
    hops = set()
    for index in range(60):
        question, turns, tools = TASK.example("results", index)
        assert not tools
        assert not question.images
        wanted, number = re.fullmatch(
            r"What is the (\w+) of (?:the wine most like )?wine (\d+)\?", question.text
        ).groups()
        for call, (found, _) in zip(turns[:-1:2], turns[1::2], strict=True):
            assert (
                arguments_of(call)["query"] == f"wine {number}"
            )  # the one asked about, then the one that its result names
            assert found.startswith(f"1. Wine {number}\n")
            number = re.search(r"most like wine (\d+)", found)[1]
        assert f"{wanted} {question.answer}," in turns[-2][0]
        assert TASK.verify(question, turns[-1].partition("</think>")[2]) == 1.0
        hops.add(len(turns) // 2)
        assert ("most like" in question.text) == (len(turns) == 5)
    assert hops == {1, 2}


def test_one_property_alone_can_be_asked_about():
    task = SmallFact(SmallFactConfig(easy_share=0, properties=("proline",)))
    assert {task.train(index).info["wanted"] for index in range(40)} == {"proline"}
    assert {TASK.train(index).info["wanted"] for index in range(40)} == {"magnesium", "proline"}
    with pytest.raises(ValidationError, match="properties"):
        SmallFactConfig(properties=())
