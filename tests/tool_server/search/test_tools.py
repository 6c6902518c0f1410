"""`search` and `image_search` as the policy sees them, and the command that builds their index."""

import asyncio
import json

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tool_server.search.build import build
from tool_server.search.corpus import CorpusError
from tool_server.search.results import Caps, Result, render
from tool_server.search.tools import ImageSearch, Search
from tool_server.tool import Tool, ToolCall, ToolError, ToolUnavailable

ROWS = [
    {"title": "Tokyo Tower", "text": "A tower of 333 m in Tokyo.", "url": "https://t.example"},
    {"title": "Eiffel Tower", "text": "A tower of 330 m in Paris.", "url": "https://e.example"},
]


def rows(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def open_tool(kind, name, options) -> Tool:
    return kind.model_validate(options).open(name)


@pytest.fixture
def search(tmp_path):
    build(rows(tmp_path / "towers.jsonl", ROWS), tmp_path / "out")
    tool = open_tool(
        Search, "tavily-search", {"provider": {"kind": "local", "index": str(tmp_path / "out")}}
    )
    yield tool
    tool.close()


@pytest.fixture
def pictures(tmp_path):
    """Four images of one colour each, 1600 x 800 and smaller, one in a folder of its own."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    items = []
    for number, (colour, side) in enumerate(
        [("red", 1600), ("blue", 100), ("green", 100), ("red", 200)]
    ):
        file = f"more/{number}.jpg" if number == 3 else f"{number}.png"
        Image.new("RGB", (side, side // 2), colour).save(folder / file)
        items.append(
            {
                "file": file,
                "caption": f"a {colour} square number {number}",
                "title": f"Square {number}",
            }
        )
    rows(folder / "captions.jsonl", items)
    build(folder, tmp_path / "pictures.index")
    return folder


def call(tool: Tool, arguments) -> tuple[str, tuple]:
    output = tool.run(ToolCall(tool.parse(arguments)))
    return asyncio.run(output) if asyncio.iscoroutine(output) else output


def test_schema_and_name(search):
    assert search.name == "tavily-search"  # the recipe's
    jsonschema.Draft202012Validator.check_schema(search.parameters)
    assert search.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "maxLength": 400, "description": "What to search for"},
            "max_results": {
                "type": "integer",
                "default": 5,
                "minimum": 1,
                "maximum": 20,
                "description": "Number of results, 1 to 20",
            },
        },
        "required": ["query"],
    }


def test_results_as_text(search):
    text, images = call(search, {"query": "tower in tokyo"})
    assert images == ()
    assert text == (
        "1. Tokyo Tower\nhttps://t.example\nA tower of 333 m in Tokyo\n\n"
        "2. Eiffel Tower\nhttps://e.example\nA tower of 330 m in Paris"
    )
    assert call(search, {"query": "tower in tokyo", "max_results": 1.0})[0].count("Tower\n") == 1
    assert call(search, {"query": "zebra"})[0] == "No results for 'zebra'. Try other words."
    assert (
        call(search, {"query": "?" * 400})[0] == f"No results for '{'?' * 40}...'. Try other words."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query is missing"),
        ({"query": ""}, "query: expected words to search for"),
        ({"query": " \n\t"}, "query: expected words to search for"),
        ({"query": ["a"]}, "query: expected words to search for"),
        ({"query": None}, "query: expected words to search for"),
        ({"query": "a" * 401}, "query: String should have at most 400 characters"),
        ({"query": "a", "max_results": 0}, "max_results: expected an integer from 1 to 20"),
        ({"query": "a", "max_results": 21}, "max_results: expected an integer from 1 to 20"),
        ({"query": "a", "max_results": 10**400}, "max_results: expected an integer from 1 to 20"),
        ({"query": "a", "max_results": "5"}, "max_results: expected an integer from 1 to 20"),
        ({"query": "a", "max_results": True}, "max_results: expected an integer from 1 to 20"),
        (
            {"query": "a", "max_results": float("nan")},
            "max_results: expected an integer from 1 to 20",
        ),
        ({"query": "a", "k": 3}, "unknown argument 'k', known: query, max_results"),
        ("a", "arguments must be an object"),
    ],
)
def test_bad_arguments_are_answered(search, arguments, message):
    with pytest.raises(ToolError) as error:
        call(search, arguments)
    assert str(error.value) == message


def test_queries_are_one_clean_line(search):
    assert search.parse({"query": "  tower\n\ud800 of\ttokyo "}).query == "tower ? of tokyo"


def test_what_is_cut_is_said_to_be_cut():
    results = [
        Result(f"title {i}", "https://x.example/" + "u" * 400, "word " * 200, 1.0)
        for i in range(10)
    ]
    text = render("q", results, Caps(snippet_chars=100, max_chars=1000))
    assert len(text) < 1000 + 80
    blocks = text.split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == ["1. title 0", "2. title 1", blocks[-1]]
    assert blocks[-1] == "[8 more results cut: an answer has at most 1000 characters]"
    _, url, snippet = blocks[0].split("\n")
    assert len(url) == 300
    assert url.endswith("u...")
    assert len(snippet) == 100
    assert snippet.endswith("word wo...")
    huge = render(
        "q",
        [Result("t" * 999, "u" * 999, "s" * 9999, 1.0)],
        Caps(snippet_chars=5000, max_chars=500),
    )
    assert len(huge) == 500
    assert huge.endswith("...")


@pytest.mark.parametrize("kind", [Search, ImageSearch])
def test_a_missing_index_is_infrastructure(kind, tmp_path):
    where = str(tmp_path / "none")
    options = {"index": where}
    if kind is Search:
        options = {"provider": {"kind": "local", "index": where}}
    with pytest.raises(ToolUnavailable) as error:
        open_tool(kind, "search", options)
    assert str(error.value) == (
        f"search index {where} is not there; build it: axpo index build CORPUS --out {where}"
    )


def test_tavily_without_a_key_does_not_open(monkeypatch, tmp_path):
    monkeypatch.delenv("TAVILY_API_KEY", raising=False)
    with pytest.raises(
        ToolUnavailable, match="tavily-search: no key for Tavily; set TAVILY_API_KEY"
    ):
        open_tool(Search, "tavily-search", {"provider": {"kind": "tavily", "cache": str(tmp_path)}})


def test_a_failing_provider_stays_the_provider(monkeypatch, tmp_path):
    monkeypatch.setenv("TAVILY_API_KEY", "k")
    provider = {
        "kind": "tavily",
        "cache": str(tmp_path),
        "base_url": "http://127.0.0.1:9",
        "attempts": 1,
    }
    tool = open_tool(Search, "tavily-search", {"provider": provider})
    with pytest.raises(ToolUnavailable, match="tavily: ConnectError"):
        call(tool, {"query": "q"})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"provider": {"kind": "google"}},
        {"provider": {"kind": "local"}},
        {"provider": {"kind": "local", "index": ""}},
        {"provider": {"kind": "tavily", "api_key": "k"}},
        {"provider": {"kind": "tavily", "base_url": "ftp://x"}},
        {"provider": {"kind": "local", "index": "x"}, "max_chars": 1},
    ],
)
def test_bad_options_fail_in_the_recipe(options):
    with pytest.raises(ValidationError):
        Search.model_validate(options)


def test_image_search(pictures, tmp_path):
    tool = open_tool(
        ImageSearch, "image_search", {"index": str(tmp_path / "pictures.index"), "max_images": 2}
    )
    text, images = call(tool, {"query": "red squares"})
    # The first is scaled down to 1024.
    assert [image.shape for image in images] == [(512, 1024, 3), (100, 200, 3)]
    assert all(image[20, 20, 0] > 250 and image[20, 20, 1] < 5 for image in images)
    assert text == (
        "1. Square 0\ncaptions.jsonl:1\na red square number 0\n\n"
        "2. Square 3\ncaptions.jsonl:4\na red square number 3\n\n"
        "[an answer has at most 2 images]"
    )
    text, images = call(tool, {"query": "green", "max_results": 1})
    assert (len(images), "at most" in text) == (1, False)
    assert call(tool, {"query": "yellow"}) == ("No results for 'yellow'. Try other words.", ())
    with pytest.raises(ToolError, match="query: expected words"):
        call(tool, {"query": ""})


def test_an_image_that_has_gone_or_grown_is_infrastructure(pictures, tmp_path):
    tool = open_tool(ImageSearch, "image_search", {"index": str(tmp_path / "pictures.index")})
    (pictures / "1.png").unlink()
    with pytest.raises(ToolUnavailable, match=r"image_search: .*1\.png is not there"):
        call(tool, {"query": "blue"})
    Image.new("L", (20_000, 200)).save(pictures / "1.png")
    with pytest.raises(
        ToolUnavailable, match=r"1\.png is 20000x200 pixels, the limit of a side is 16,384"
    ):
        call(tool, {"query": "blue"})
    assert call(tool, {"query": "green"})[1][0].shape == (50, 100, 3)  # the others still work


def test_images_and_texts_do_not_mix(pictures, search, tmp_path):
    with pytest.raises(ToolUnavailable, match="holds texts, this tool needs images"):
        open_tool(ImageSearch, "image_search", {"index": str(tmp_path / "out")})
    with pytest.raises(ToolUnavailable, match="holds images, this tool needs texts"):
        open_tool(
            Search,
            "search",
            {"provider": {"kind": "local", "index": str(tmp_path / "pictures.index")}},
        )
    rows(pictures / "more.jsonl", [{"text": "a text"}])
    with pytest.raises(CorpusError, match=r"holds both texts and images, from more\.jsonl:1 on"):
        build(pictures, tmp_path / "pictures.index")


def test_images_are_found_after_a_move(pictures, tmp_path):
    (tmp_path / "new").mkdir()
    pictures.rename(tmp_path / "new" / "pictures")
    index = (tmp_path / "pictures.index").rename(tmp_path / "new" / "pictures.index")
    tool = open_tool(ImageSearch, "image_search", {"index": str(index)})
    (image,) = call(tool, {"query": "green"})[1]
    assert np.array_equal(image[0, 0], [0, 128, 0])
    index.rename(tmp_path / "alone")
    with pytest.raises(ToolUnavailable, match=r"the images of .*alone are not here"):
        open_tool(ImageSearch, "image_search", {"index": str(tmp_path / "alone")})


def test_a_caption_with_a_bomb_is_refused_when_the_index_is_built(pictures, tmp_path):
    Image.new("L", (1, 300)).save(pictures / "bomb.png")
    rows(pictures / "more.jsonl", [{"file": "bomb.png", "caption": "x"}])
    with pytest.raises(
        CorpusError,
        match=r"row 1: file: .*bomb\.png is 1x300 pixels, the limit of long to short side",
    ):
        build(pictures, tmp_path / "pictures.index")


def test_axpo_index_build(tmp_path, monkeypatch, capsys):
    from axpo import cli

    def run(*arguments) -> str:
        monkeypatch.setattr("sys.argv", ["axpo", "index", "build", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return f"{stopped.value.code} {' '.join((out + err).split())}"

    corpus = rows(tmp_path / "towers.jsonl", ROWS)
    out = tmp_path / "towers.index"
    assert run(corpus).startswith(f"0 index {out}: 2 documents, 0.0 MB, built in ")
    assert run(corpus) == f"0 index {out}: 2 documents, 0.0 MB, up to date"
    assert run(corpus, "--out", tmp_path / "b").startswith(f"0 index {tmp_path / 'b'}: 2 documents")
    rows(corpus, [{"text": ""}])
    assert run(corpus) == f"2 error {corpus}, row 1: text: expected a text"
    assert run(tmp_path / "none") == f"2 error {tmp_path / 'none'}: no such file or folder"
