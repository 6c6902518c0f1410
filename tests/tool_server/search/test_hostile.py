"""Indexes and corpora from elsewhere: nothing outside of their folders is read or written."""

import json
import os

import pytest
from PIL import Image

from tool_server.search import corpus as corpus_module
from tool_server.search.build import build
from tool_server.search.corpus import Corpus, CorpusError
from tool_server.search.index import SearchIndex
from tool_server.search.tools import ImageSearch
from tool_server.tool import ToolCall, ToolUnavailable


@pytest.fixture
def built(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("wine")
    out = tmp_path / "notes.index"
    build(tmp_path / "notes", out)
    return out


def rewrite(out, **changes):
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", "..", ".", "", "a\\b", "a\0b", "a\nb", "x" * 300, "\u2215x"]
)
def test_a_manifest_names_plain_files_only(built, tmp_path, name):
    entry = [3, "0" * 64]
    rewrite(built, files={name: entry})
    with pytest.raises(ToolUnavailable, match="is damaged"):
        SearchIndex(built, "texts")
    rewrite(built, files={"a": entry}, directory=name)
    with pytest.raises(ToolUnavailable, match="is damaged"):
        SearchIndex(built, "texts")


def test_files_of_an_index_are_no_links_and_no_pipes(built, tmp_path):
    (folder,) = built.glob("index-*")
    file = next(folder.glob("*.store"))
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    with pytest.raises(ToolUnavailable, match=r"store is a link\)"):
        SearchIndex(built, "texts")
    file.unlink()
    os.mkfifo(file)
    rewrite(built, files={file.name: [0, "0" * 64]})
    with pytest.raises(ToolUnavailable, match="is no regular file"):
        SearchIndex(built, "texts")
    (built / "manifest.json").unlink()
    os.mkfifo(built / "manifest.json")
    with pytest.raises(ToolUnavailable, match=r"manifest\.json is no regular file"):
        SearchIndex(built, "texts")


def test_a_corpus_that_a_manifest_names_is_looked_for_beside_the_index_only(built, tmp_path):
    assert SearchIndex(built, "texts").corpus == tmp_path / "notes"
    for elsewhere in ("/proc", "../../..", "/"):
        rewrite(built, corpus=elsewhere, folder=elsewhere)
        index = SearchIndex(built, "texts")
        assert (index.corpus, index.folder) == (None, None)
    # The recipe may name it.
    (tmp_path / "notes" / "a.txt").write_text("beer")
    with pytest.raises(ToolUnavailable, match="is older than its corpus"):
        SearchIndex(built, "texts", tmp_path / "notes")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Build an index whose rows name any file, as somebody else's builder might."""
    monkeypatch.setattr(Corpus, "_check_image", lambda self, file, where: None)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "private.png")
    shown = tmp_path / "held" / "shown"
    shown.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(shown / "good.png")
    (shown / "link.png").symlink_to(tmp_path / "private.png")
    (shown / "parent").symlink_to(tmp_path)
    os.mkfifo(shown / "pipe.png")

    def searched(file, **options):
        row = {"file": str(file), "caption": "wine label"}
        (shown / "rows.jsonl").write_text(json.dumps(row) + "\n")
        out = tmp_path / "held" / "shown.index"
        build(shown, out)
        tool = ImageSearch(index=str(out), **options).open("image_search")
        return tool.run(ToolCall(tool.parse({"query": "wine"})))[1]

    return searched


def test_images_are_shown_from_inside_the_folder_only(pictures, tmp_path):
    (image,) = pictures("good.png")
    assert image[0, 0].tolist() == [0, 0, 255]
    private = tmp_path / "private.png"
    for file in (private, "../../private.png", "link.png", "parent/private.png"):
        with pytest.raises(ToolUnavailable, match="leaves the folder"):
            pictures(file)
    for file in ("pipe.png", "/dev/zero", "a\0b", "x" * 5000):
        with pytest.raises(ToolUnavailable):
            pictures(file)


def test_images_elsewhere_are_shown_if_the_recipe_names_them(pictures, tmp_path):
    pictures("good.png")
    out = tmp_path / "held" / "shown.index"
    moved = tmp_path / "far" / "away.index"
    moved.parent.mkdir()
    out.rename(moved)
    rewrite(moved, folder="../../held/shown", corpus="../../held/shown")
    with pytest.raises(ToolUnavailable, match="name what was indexed with the option `corpus`"):
        ImageSearch(index=str(moved)).open("image_search")
    named = ImageSearch(index=str(moved), corpus=str(tmp_path / "held" / "shown"))
    named.open("image_search")


def put_pipe(folder):
    os.mkfifo(folder / "x.txt")


def put_link_out(folder):
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "x.txt").symlink_to(folder.parent / "secret.txt")


def put_device(folder):
    (folder / "x.txt").symlink_to("/dev/zero")


def put_loop(folder):
    (folder / "x.txt").symlink_to(folder / "x.txt")


@pytest.mark.parametrize("put", [put_pipe, put_link_out, put_device, put_loop])
def test_a_corpus_holds_regular_files_of_its_folder(tmp_path, put):
    folder = tmp_path / "notes"
    folder.mkdir()
    put(folder)
    with pytest.raises(CorpusError, match=r"x\.txt: (is no regular file|leaves|is not there)"):
        build(folder, tmp_path / "out")


def test_a_link_inside_the_folder_is_followed(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("wine")
    (folder / "b.txt").symlink_to("deep/a.txt")
    assert build(folder, tmp_path / "out")[0].documents == 2


def test_a_pipe_is_no_corpus(tmp_path):
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(CorpusError, match="is no regular file"):
        Corpus(tmp_path / "x.jsonl")


def test_rows_and_corpora_have_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_ROW", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x"}) + "\n" + "[" * 2000)
    with pytest.raises(CorpusError, match=r"a\.jsonl, row 2: more than 1,000 bytes"):
        build(tmp_path / "a.jsonl", tmp_path / "out")
    (tmp_path / "b.txt").write_text("x" * 1001)
    with pytest.raises(CorpusError, match=r"b\.txt: more than 1,000 bytes"):
        build(tmp_path / "b.txt", tmp_path / "out2")
    with (tmp_path / "c.jsonl").open("wb") as sparse:
        sparse.truncate(300 << 30)
    with pytest.raises(CorpusError, match="bytes, at most"):
        Corpus(tmp_path / "c.jsonl")
