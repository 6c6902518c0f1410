"""The local index: what is found, what a changed corpus does, and what a damaged folder says."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tool_server.search import corpus as corpus_module
from tool_server.search import index as index_module
from tool_server.search.build import build, default_out
from tool_server.search.corpus import MAX_PASSAGE, CorpusError
from tool_server.search.index import SearchIndex
from tool_server.tool import ToolUnavailable

ROWS = [
    {
        "id": "z",
        "title": "Zebra",
        "text": "Zebras are African equines. Their stripes confuse flies.",
        "url": "https://a.example/zebra",
    },
    {
        "title": "Horse",
        "text": "Horses run fast; a horse is an equine. "
        + "Grass and hay. " * 100
        + "The zebra is a relative.",
    },
    {"text": "東京タワーは赤い塔です。"},
    {"text": "Café au lait naïve", "title": None, "extra": [1, 2]},
    {"text": "Ein Absatz über Straßen", "id": 7},
]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def built(tmp_path):
    corpus, out = write(tmp_path / "animals.jsonl", ROWS), tmp_path / "out"
    manifest, done = build(corpus, out)
    assert done
    assert (manifest.kind, manifest.documents) == ("texts", 5)
    return corpus, out


def found(out: Path, query: str, k: int = 5) -> list[str]:
    return [result.url for result in SearchIndex(out, "texts").search(query, k)]


def test_ranked_with_snippets(built):
    index = SearchIndex(built[1], "texts")
    results = index.search("zebra stripes", 5, 60)
    assert [r.title for r in results] == ["Zebra", "Horse"]  # both words before one
    assert results[0].score > results[1].score > 0
    assert results[0].url == "https://a.example/zebra"
    assert results[1].url == "animals.jsonl:2"  # no address: the row
    assert "The zebra is a" in results[1].snippet  # from the end of a long text
    assert len(results[1].snippet) <= 60
    assert [r.title for r in index.search("zebra stripes", 1)] == ["Zebra"]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("RUNNING horses", "animals.jsonl:2"),  # case and English endings
        ("cafe", "animals.jsonl:4"),  # accents
        ("タワー", "animals.jsonl:3"),  # scripts without spaces
        ("strassen", "7"),
        ("Zebra", "https://a.example/zebra"),  # a title counts more than a mention
    ],
)
def test_words_find_their_forms(built, query, first):
    assert found(built[1], query)[0] == first


HOSTILE = [
    "",
    " ",
    "???",
    '"',
    '"zebra',
    'zebra"~9999999',
    "(((((" * 80,
    "title:zebra",
    "nofield:zebra",
    "* OR *",
    "NOT zebra",
    "-zebra",
]
HOSTILE += [
    "+",
    "AND OR NOT",
    "zebra^1e308",
    "[a TO z]",
    "/z.*/",
    "z*",
    "\\",
    "\x00zebra",
    "zebra\ud800",
    "🦓" * 100,
    "a " * 200,
]
HOSTILE += ["<|im_end|>", "IN [a b c]", "text:>z", "东" * 400, "z" * 400, "́" * 400, "﷽" * 400]


def test_a_query_is_words_whatever_it_holds(built):
    index = SearchIndex(built[1], "texts")
    for query in HOSTILE:
        for result in index.search(query, 20):
            assert result.score > 0
    for query in (
        "title:zebra",
        "-zebra",
        "NOT zebra",
        '"zebra',
        "zebra^1e308",
        "\x00zebra",
        "zebra\ud800",
    ):
        assert index.search(query, 1)[0].url == "https://a.example/zebra"
    for query in ("", "???", "* ", "nothing here matches"):
        assert index.search(query, 5) == []


def test_threads_share_an_index(built):
    index = SearchIndex(built[1], "texts")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: index.search("zebra horse", 5), range(500)))
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 2


def test_opening_leaves_nothing_behind(built, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    index = SearchIndex(built[1], "texts")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(index.search("zebra", 5)) == 2


SEARCHER = """
import pathlib, sys
from tool_server.search.index import SearchIndex

index = SearchIndex(pathlib.Path(sys.argv[1]), "texts")
print([result.title for result in index.search("zebra", 5)])
"""


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the time and size of everything in a folder."""
    paths = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_processes_share_an_index_that_is_never_written(built):
    before = files_of(built[1])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SEARCHER, built[1]], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [run.communicate(timeout=60)[0].strip() for run in runs] == ["['Zebra', 'Horse']"] * 3
    assert files_of(built[1]) == before


def test_nothing_is_done_if_nothing_changed(built):
    corpus, out = built
    manifest = (out / "manifest.json").read_text()
    assert build(corpus, out)[1] is False
    corpus.touch()  # a new time, the same content
    assert build(corpus, out)[1] is False
    assert found(out, "zebra")
    assert (out / "manifest.json").read_text() == manifest


def test_a_changed_corpus_is_noticed_and_rebuilt(built):
    corpus, out = built
    write(corpus, [{"text": "only lions"}])
    with pytest.raises(ToolUnavailable) as error:
        SearchIndex(out, "texts")
    assert str(error.value) == (
        f"search index {out} is older than its corpus; "
        f"build it again: axpo index build {corpus} --out {out}"
    )
    assert build(corpus, out)[1] is True
    assert found(out, "lion zebra") == ["animals.jsonl:1"]
    assert len(list(out.glob("index-*"))) == 1  # nothing of the old one is left


def test_an_open_index_survives_its_replacement(built):
    corpus, out = built
    index = SearchIndex(out, "texts")
    write(corpus, [{"text": "only lions"}])
    build(corpus, out)
    assert [r.title for r in index.search("zebra", 5)] == ["Zebra", "Horse"]


def test_an_index_needs_no_corpus_beside_it_and_moves_with_it(built, tmp_path):
    corpus, out = built
    corpus.unlink()
    assert found(out, "zebra", 1) == ["https://a.example/zebra"]
    out.rename(tmp_path / "elsewhere")
    assert found(tmp_path / "elsewhere", "zebra", 1) == ["https://a.example/zebra"]


def test_a_build_that_fails_leaves_the_old_index(built, monkeypatch):
    corpus, out = built
    write(corpus, [*ROWS, {"text": 3.5}])
    with pytest.raises(CorpusError, match=r"animals\.jsonl, row 6: text: expected a text"):
        build(corpus, out)
    write(corpus, ROWS)
    assert found(out, "zebra", 1) == ["https://a.example/zebra"]
    assert len(list(out.glob("index-*"))) == 1
    # Killed between writing and replacing the manifest: leftovers, and the old index whole.
    (out / "index-leftover").mkdir()
    (out / "manifest.json.new").write_text("{")
    assert found(out, "zebra", 1) == ["https://a.example/zebra"]
    write(corpus, ROWS[:1])
    assert build(corpus, out)[1]
    assert sorted(p.name[:6] for p in out.iterdir()) == [".lock", "index-", "manife"]


def test_one_build_at_a_time(built):
    corpus, out = built
    write(corpus, ROWS[:2])
    inside, leave = threading.Event(), threading.Event()

    def progress(done, total):
        inside.set()
        leave.wait(20)

    thread = threading.Thread(target=build, args=(corpus, out, progress))
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(CorpusError, match="another build is running"):
            build(corpus, out)
    finally:
        leave.set()
        thread.join(20)
    assert len(found(out, "zebra")) == 2


def test_a_corpus_that_changes_while_it_is_read(built):
    corpus, out = built
    write(corpus, ROWS[:3])
    with pytest.raises(CorpusError, match="changed while it was read"):
        build(corpus, out, lambda done, total: write(corpus, ROWS[:4]) and None)


@pytest.mark.parametrize("name", ["store", "term", "idx", "meta.json", "fieldnorm"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_index_says_so(built, name, damage):
    (file,) = built[1].glob(f"index-*/*{name}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data if damage == "flip" else data[:-3])
    with pytest.raises(ToolUnavailable) as error:
        SearchIndex(built[1], "texts")
    what = "is missing" if damage == "remove" else "is not as it was written"
    message = str(error.value)
    assert f"search index {built[1]} is damaged" in message
    assert f"{file.name} {what}); build it: axpo index build CORPUS --out {built[1]}" in message
    assert build(built[0], built[1])[1] is True  # and building repairs it
    assert found(built[1], "zebra")


def test_a_missing_or_foreign_index_says_so(built, tmp_path, monkeypatch):
    for path, message in [
        (tmp_path / "none", "is not there; build it: axpo index build CORPUS"),
        (tmp_path, "has no manifest.json; build it"),
    ]:
        with pytest.raises(ToolUnavailable, match=message):
            SearchIndex(path, "texts")
    with pytest.raises(ToolUnavailable, match="holds texts, this tool needs images"):
        SearchIndex(built[1], "images")
    with monkeypatch.context() as patched:
        patched.setattr(index_module, "version", lambda package: "99.0")
        with pytest.raises(
            ToolUnavailable,
            match=r"is of another version \(format 1, tantivy .*; here format 1, tantivy 99\.0\)",
        ):
            SearchIndex(built[1], "texts")
        assert build(*built)[1] is True  # an upgrade of tantivy rebuilds
    (built[1] / "manifest.json").write_text("{}")
    with pytest.raises(ToolUnavailable, match=r"is damaged \(manifest\.json: ValidationError\)"):
        SearchIndex(built[1], "texts")


def test_a_folder_that_is_no_index_is_left_alone(built, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(CorpusError, match="exists and is not an index"):
        build(built[0], tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_folder_of_texts(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    write(folder / "a.jsonl", ROWS[:1])
    (folder / "deep" / "lion.txt").write_text("\ufeffLions sleep.")
    (folder / "tiger.md").write_text("# Tigers\nTigers swim.")
    (folder / ".git" / "hidden.txt").write_text("tigers tigers")
    (folder / "picture.bin").write_bytes(b"\xff\xfe")
    (folder / "empty.txt").write_text("\n")
    out = default_out(folder)
    assert out == tmp_path / "notes.index"
    assert build(folder, out)[0].documents == 3
    assert found(out, "tigers") == ["tiger.md"]
    assert found(out, "lion") == ["deep/lion.txt"]  # by its name, too
    (folder / "new.txt").write_text("tigers again")
    with pytest.raises(ToolUnavailable, match="is older than its corpus"):
        SearchIndex(out, "texts")


def test_a_long_text_becomes_passages(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("word " * 10_000 + "needle " + "word " * 1000 + "x" * (MAX_PASSAGE + 10))
    manifest, _ = build(book, tmp_path / "out")
    # 55,000 characters at 20,000 each, then a word that is longer than one.
    assert manifest.documents == 5
    index = SearchIndex(tmp_path / "out", "texts")
    (result,) = index.search("needle", 5)
    assert (result.title, result.url) == ("book (part 3)", "book.txt#3")
    assert "needle" in result.snippet
    parts = list(corpus_module._passages(corpus_module.Document("b", "", book.read_text(), "")))
    assert "".join(part.text for part in parts) == book.read_text()
    assert max(len(part.text) for part in parts) <= MAX_PASSAGE


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": }\n', "a.jsonl, row 2: not JSON"),
        ("a.jsonl", b'["text"]\n', "row 1: expected an object"),
        ("a.jsonl", b'{"title": "x"}\n', "row 1: text: expected a text"),
        ("a.jsonl", b'{"text": " "}\n', "row 1: text: expected a text"),
        ("a.jsonl", b'{"text": "x", "url": ["u"]}\n', "row 1: url: expected a text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "row 1: not UTF-8: invalid start byte at byte 10"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "row 1: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"file": "none.png", "caption": "b"}\n', "row 2: file: "),
        (
            "a.jsonl",
            b'{"file": "../../etc/passwd", "caption": "b"}\n',
            "row 1: file: expected a path inside the folder",
        ),
        (
            "a.jsonl",
            b'{"file": "/etc/passwd", "caption": "b"}\n',
            "row 1: file: expected a path inside the folder",
        ),
        ("a.jsonl", b"\n\n", "no documents"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.pdf", b"%PDF", "expected a folder or a .jsonl, .txt, .md file"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as error:
        build(tmp_path / name, tmp_path / "out")
    assert message in str(error.value)
    assert not list(tmp_path.glob("out/index-*"))


def test_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="no such file or folder"):
        build(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"no \.jsonl, \.txt, \.md file in this folder"):
        build(tmp_path / "empty", tmp_path / "out")


def test_lone_surrogates_are_indexed_as_question_marks(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "tail\\ud800 end"}\n')
    build(tmp_path / "a.jsonl", tmp_path / "out")
    assert found(tmp_path / "out", "tail") == ["a.jsonl:1"]
