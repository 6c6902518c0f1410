"""The embedded index: built from a corpus into a folder, opened read-only by any number of processes.

    OUT/manifest.json     what was indexed and with what; replaced last, in one step, so the folder is always one whole index
    OUT/index-XXXXXXXX/   tantivy's files

A query is words, not a query language: its text goes through the analyser of the documents and the terms are OR-ed. So every string
has one meaning ("-1", "C++", "a: b" and unbalanced quotes search for their words), and its cost is bounded by its length.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from tool_server.search.corpus import Corpus, CorpusError, clean
from tool_server.search.results import Result
from tool_server.tool import ToolUnavailable

FORMAT = 1
"""Of the folder, the schema and the analyser: raised with any change of them."""

Kind: TypeAlias = Literal["texts", "images"]


class Manifest(BaseModel):
    """What an index folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    tantivy: str  # its version: analysers and file format follow it
    kind: Kind
    documents: int
    corpus: str  # relative to the index folder, as `folder`, so that both can move together
    folder: str  # to which the paths of images are relative
    corpus_content: str
    corpus_stat: str
    directory: str
    files: dict[str, tuple[int, str]]  # name -> bytes, SHA-256


class Damaged(Exception):
    """Why an index folder cannot be opened, in one line."""


def default_out(corpus: Path) -> Path:
    """`data/wiki.jsonl` -> `data/wiki.index`; `docs/` -> `docs.index`."""
    path = corpus.absolute()
    return path.parent / f"{path.name if path.is_dir() else path.stem}.index"


def build(
    path: Path, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Manifest, bool]:
    """Index the corpus at `path` into the folder `out`; nothing to do where it holds that index already, and whole.

    A failure leaves what was there; readers of the old index keep it until they close. `progress` gets bytes read and bytes in all.
    Returns the manifest and whether anything was built. Raises CorpusError.
    """
    corpus = Corpus(path)
    if (
        out.exists()
        and not (out / "manifest.json").exists()
        and (not out.is_dir() or any(not _ours(p.name) for p in out.iterdir()))
    ):
        raise CorpusError(f"{out}: exists and is not an index; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with _exclusive(out):
        try:
            manifest = _read_manifest(out)
            _check_files(out, manifest)
            if not _changed(manifest, corpus) and manifest.corpus == os.path.relpath(
                corpus.path, out.absolute()
            ):
                return manifest, False
        except Damaged:
            pass
        directory = Path(tempfile.mkdtemp(prefix="index-", dir=out))
        directory.chmod(0o755)
        try:
            manifest = _write(corpus, out, directory, progress)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        temporary = out / "manifest.json.new"
        temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, out / "manifest.json")
        _clear(out, keep=manifest.directory)
        return manifest, True


class SearchIndex:
    """An open index. Safe to use from many threads."""

    def __init__(self, path: Path, kind: Kind) -> None:
        """Reads every file once, to verify it (0.4 GB/s and more).

        Raises ToolUnavailable: not there, damaged, built by another version, of another kind, or of a corpus that has changed since.
        A corpus that is not on this machine is not compared.
        """
        try:
            try:
                self.manifest = _read_manifest(path)
                self._open(path)
            except Damaged:  # a build may have replaced it between the two
                self.manifest = _read_manifest(path)
                self._open(path)
        except Damaged as error:
            raise ToolUnavailable(
                f"search index {path} {error}; build it: axpo index build CORPUS --out {path}"
            ) from None
        if self.manifest.kind != kind:
            raise ToolUnavailable(
                f"search index {path} holds {self.manifest.kind}, this tool needs {kind}"
            )
        self.corpus, self.folder = (
            Path(os.path.normpath(path.absolute() / p))
            for p in (self.manifest.corpus, self.manifest.folder)
        )
        if self._outdated():
            rebuild = f"axpo index build {self.corpus} --out {path}"
            raise ToolUnavailable(
                f"search index {path} is older than its corpus; build it again: {rebuild}"
            )

    def search(self, query: str, max_results: int, snippet_chars: int = 500) -> list[Result]:
        """At most `max_results` documents by BM25, best first; ties in the order of the corpus."""
        from tantivy import Document, Occur, Query, SnippetGenerator

        schema = self._index.schema
        terms = dict.fromkeys(self._analyser.analyze(clean(query)))
        wanted = Query.boolean_query(
            [(Occur.Should, Query.term_query(schema, "text", term, "freq")) for term in terms]
        )
        hits = self._searcher.search(
            wanted, max_results, count=False
        ).hits  # uncounted: documents that cannot reach the top are skipped
        snippets = SnippetGenerator.create(self._searcher, wanted, schema, "text")
        snippets.set_max_num_chars(snippet_chars)
        results = []
        for score, address in hits:
            row = json.loads(bytes(self._searcher.doc(address).get_all("row")[0]))
            snippet = (
                snippets.snippet_from_doc(Document(text=row["text"])).fragment()
                or row["text"][:snippet_chars]
            )
            results.append(
                Result(row["title"], row["url"] or row["id"], snippet, float(score), row["image"])
            )
        return results

    def _outdated(self) -> bool:
        try:
            return self.corpus.exists() and _changed(self.manifest, Corpus(self.corpus))
        except CorpusError:  # nothing is left to index
            return True
        except OSError:  # not ours to read: as good as not there
            return False

    def _open(self, path: Path) -> None:
        import tantivy

        _check_files(path, self.manifest)
        # Tantivy takes a lock file beside what it opens: links in a folder of our own leave the index untouched, on read-only disks too.
        # An open searcher has mapped every file, so the folder can go at once.
        try:
            with tempfile.TemporaryDirectory(prefix="axpo-index-") as links:
                for name in self.manifest.files:
                    Path(links, name).symlink_to(path.absolute() / self.manifest.directory / name)
                self._index = tantivy.Index.open(links)
                self._index.config_reader("manual")  # no thread that polls for commits
                self._searcher = self._index.searcher()
        except (OSError, ValueError) as error:
            raise Damaged(f"is damaged ({str(error).splitlines()[0][:200]})") from None
        self._analyser = _analyser()
        self._index.register_tokenizer("words", self._analyser)
        if self._searcher.num_docs != self.manifest.documents:
            raise Damaged(
                f"is damaged ({self._searcher.num_docs} documents of {self.manifest.documents})"
            )


def _write(
    corpus: Corpus, out: Path, directory: Path, progress: Callable[[int, int], None]
) -> Manifest:
    """The index of a corpus in an empty directory."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="words", index_option="freq")
    builder.add_bytes_field("row", stored=True)
    index = tantivy.Index(builder.build(), path=str(directory))
    index.register_tokenizer("words", _analyser())
    total, stat, sha = corpus.size, corpus.stat_hash(), hashlib.sha256()
    writer = index.writer(
        heap_size=128_000_000, num_threads=1
    )  # one thread: documents keep their order, so ties do
    documents, images = 0, 0
    try:
        for document in corpus.documents(sha, lambda done: progress(done, total)):
            if bool(document.image) != bool(images) and documents:
                raise CorpusError(
                    f"{corpus.path}: holds both texts and images, from {document.id} on; build one index of each"
                )
            # One field, the title counted twice. With a field each, a frequent word is rare among titles, so a title that holds it
            # beats the document that holds every word asked for: recall@5 of planted documents was 0.05, so it is 1.00.
            words = [document.title, document.title, document.text]
            writer.add_document(
                tantivy.Document(text=words, row=json.dumps(asdict(document)).encode())
            )
            documents, images = documents + 1, images + bool(document.image)
        if not documents:
            raise CorpusError(f"{corpus.path}: no documents")
        writer.commit()
    except BaseException:
        writer.rollback()
        raise
    finally:
        writer.wait_merging_threads()  # they write to the directory until then
    if Corpus(corpus.path).stat_hash() != stat:
        raise CorpusError(f"{corpus.path}: changed while it was read; build again")
    for lock in directory.glob(".tantivy-*.lock"):
        lock.unlink()
    for file in directory.iterdir():
        file.chmod(0o644)  # tantivy writes two of them for the builder alone
    return Manifest(
        format=FORMAT,
        tantivy=version("tantivy"),
        kind="images" if images else "texts",
        documents=documents,
        corpus=os.path.relpath(corpus.path, out.absolute()),
        folder=os.path.relpath(corpus.folder, out.absolute()),
        corpus_content=sha.hexdigest(),
        corpus_stat=stat,
        directory=directory.name,
        files={
            file.name: (file.stat().st_size, _sha256(file)) for file in sorted(directory.iterdir())
        },
    )


def _analyser() -> Any:
    """Words without accents, case and English endings. Scripts written without spaces are indexed by character: with the usual
    tokenisers a whole Chinese clause is one word, and no query finds it."""
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    words = Tokenizer.regex(rf"[{unspaced}]|[\p{{L}}\p{{M}}\p{{N}}--[{unspaced}]]+")
    builder = (
        TextAnalyzerBuilder(words)
        .filter(Filter.remove_long(60))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
    )
    return builder.filter(Filter.stemmer("english")).build()


def _changed(manifest: Manifest, corpus: Corpus) -> bool:
    """The content is compared only where names, sizes or times differ."""
    return (
        manifest.corpus_stat != corpus.stat_hash()
        and manifest.corpus_content != corpus.content_hash()
    )


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((path / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise Damaged("has no manifest.json" if path.exists() else "is not there") from None
    except (OSError, ValidationError) as error:
        raise Damaged(f"is damaged (manifest.json: {type(error).__name__})") from None
    built, here = (
        f"format {f}, tantivy {t}"
        for f, t in ((manifest.format, manifest.tantivy), (FORMAT, version("tantivy")))
    )
    if built != here:
        raise Damaged(f"is of another version ({built}; here {here})")
    return manifest


def _check_files(path: Path, manifest: Manifest) -> None:
    for name, (size, digest) in manifest.files.items():
        file = path / manifest.directory / name
        try:
            whole = file.stat().st_size == size and _sha256(file) == digest
        except OSError:
            raise Damaged(f"is damaged ({manifest.directory}/{name} is missing)") from None
        if not whole:
            raise Damaged(f"is damaged ({manifest.directory}/{name} is not as it was written)")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ours(name: str) -> bool:
    return name.startswith("index-") or name in ("manifest.json", "manifest.json.new", ".lock")


def _clear(out: Path, keep: str | None) -> None:
    """Remove what earlier or interrupted builds left. Open readers keep their mapped files."""
    for leftover in out.glob("index-*"):
        if leftover.name != keep:
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """One build at a time in a folder."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorpusError(f"{out}: another build is running") from None
        yield
