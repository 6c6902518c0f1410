"""The embedded index: a folder that any number of processes open.

    OUT/manifest.json     what was indexed and with what; replaced last, in one step, so the folder
                          is always one whole index
    OUT/index-XXXXXXXX/   tantivy's files

A query is words, not a query language: its text goes through the analyser of the documents, and
the terms are OR-ed. So every string has one meaning ("-1", "C++", "a: b" and unbalanced quotes
search for their words), and its cost is bounded by its length.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from axpo.plain_files import NotPlain, open_plain, read_plain
from tool_server.search.corpus import Corpus, CorpusError, Document, clean
from tool_server.search.results import Result
from tool_server.tool import ToolUnavailable

if TYPE_CHECKING:
    import tantivy

FORMAT = 1
"""Version of the folder, the schema and the analyser. Raise it with any change of them."""

MANIFEST = "manifest.json"

MAX_MANIFEST = 16 << 20
"""Bytes; the manifest of a thousand files takes 0.1 MB."""

Kind: TypeAlias = Literal["texts", "images"]


# An index may come from elsewhere: a name with a slash would lead out of its folder.
PlainName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^\.?[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=200)
]


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
    directory: PlainName
    files: dict[PlainName, tuple[int, str]] = Field(max_length=10_000)  # -> bytes, SHA-256


class Damaged(Exception):
    """Why an index folder cannot be opened, in one line."""


class SearchIndex:
    """An open index. Safe to use from many threads."""

    def __init__(self, path: Path, kind: Kind, corpus: Path | None = None) -> None:
        """Open the index. Every file is read once, to verify it (0.4 GB/s and more).

        A corpus that is not on this machine is not compared. An index from elsewhere may name any
        place as its corpus, so only one beside the index is looked for.

        Args:
            path: folder of the index.
            kind: what it must hold.
            corpus: its corpus, if that is not inside the folder that holds the index.

        Raises:
            ToolUnavailable: the index is not there, damaged, built by another version, of another
                kind, or of a corpus that has changed since.
        """
        try:
            try:
                self._open(path)
            except Damaged:
                # A build may have replaced it between the manifest and the files.
                self._open(path)
        except Damaged as error:
            raise ToolUnavailable(
                f"search index {path} {error}; build it: axpo index build CORPUS --out {path}"
            ) from None
        manifest = self.manifest
        if manifest.kind != kind:
            raise ToolUnavailable(
                f"search index {path} holds {manifest.kind}, this tool needs {kind}"
            )
        if corpus is None:
            self.corpus = _beside(path, manifest.corpus)
            self.folder = _beside(path, manifest.folder)
        else:
            self.corpus = corpus
            self.folder = corpus if corpus.is_dir() else corpus.parent
        if self._outdated():
            rebuild = f"axpo index build {self.corpus} --out {path}"
            raise ToolUnavailable(
                f"search index {path} is older than its corpus; build it again: {rebuild}"
            )

    def search(self, query: str, max_results: int, snippet_chars: int = 500) -> list[Result]:
        """Return the best documents by BM25, best first; ties in the order of the corpus.

        Args:
            query: any text; its words are searched for.
            max_results: how many documents at most.
            snippet_chars: characters of a snippet.
        """
        from tantivy import Occur, Query, SnippetGenerator

        schema = self._index.schema
        # Each word counts once, however often the query repeats it.
        terms = dict.fromkeys(self._analyser.analyze(clean(query)))
        wanted = Query.boolean_query(
            [(Occur.Should, Query.term_query(schema, "text", term, "freq")) for term in terms]
        )
        # Uncounted: documents that cannot reach the top are skipped.
        hits = self._searcher.search(wanted, max_results, count=False).hits
        snippets = SnippetGenerator.create(self._searcher, wanted, schema, "text")
        snippets.set_max_num_chars(snippet_chars)
        results = []
        for score, address in hits:
            stored = self._searcher.doc(address).get_all("row")[0]
            document = _document(bytes(stored))
            snippet = _snippet(document, snippets, snippet_chars)
            url = document.url or document.id
            results.append(Result(document.title, url, snippet, float(score), document.image))
        return results

    def _outdated(self) -> bool:
        if self.corpus is None:
            return False
        try:
            return self.corpus.exists() and changed(self.manifest, Corpus(self.corpus))
        except CorpusError:  # nothing is left to index
            return True
        except OSError:  # not ours to read: as good as not there
            return False

    def _open(self, path: Path) -> None:
        """Read the manifest, verify the files and open them. Raises Damaged."""
        import tantivy

        self.manifest = read_manifest(path)
        check_files(path, self.manifest)
        files = path.absolute() / self.manifest.directory
        # Tantivy takes a lock file beside what it opens. Links in a folder of our own leave the
        # index untouched, on read-only disks too. An open searcher has mapped every file, so the
        # folder can go at once.
        try:
            with tempfile.TemporaryDirectory(prefix="axpo-index-") as links:
                for name in self.manifest.files:
                    Path(links, name).symlink_to(files / name)
                self._index = tantivy.Index.open(links)
                self._index.config_reader("manual")  # no thread that polls for commits
                self._searcher = self._index.searcher()
        except (OSError, ValueError) as error:
            raise Damaged(f"is damaged ({str(error).splitlines()[0][:200]})") from None
        self._analyser = analyser()
        self._index.register_tokenizer("words", self._analyser)
        documents = self._searcher.num_docs
        if documents != self.manifest.documents:
            raise Damaged(f"is damaged ({documents} documents of {self.manifest.documents})")


def _beside(path: Path, name: str) -> Path | None:
    """Return what a manifest names, if it is inside the folder that holds the index."""
    holder = Path(os.path.realpath(path.absolute().parent))
    named = Path(os.path.realpath(path.absolute() / name))
    return named if named.is_relative_to(holder) else None


def _document(stored: bytes) -> Document:
    """Return a document as it was stored; raise ToolUnavailable if it is none."""
    try:
        document = Document(**json.loads(stored))
    except (ValueError, TypeError, RecursionError):
        document = None
    if document is None or not all(isinstance(text, str) for text in vars(document).values()):
        raise ToolUnavailable("the search index holds a row that is no document; build it again")
    return Document(**{name: clean(text) for name, text in vars(document).items()})


def _snippet(document: Document, snippets: tantivy.SnippetGenerator, snippet_chars: int) -> str:
    """Return the part of a document that matches, or its beginning if only the title does."""
    import tantivy

    matching = snippets.snippet_from_doc(tantivy.Document(text=document.text)).fragment()
    return matching or document.text[:snippet_chars]


def analyser() -> tantivy.TextAnalyzer:
    """Return what turns a text into words without accents, case and English endings.

    Scripts written without spaces are indexed by character: with the usual tokenisers a whole
    Chinese clause is one word, and no query finds it.
    """
    from tantivy import Filter, TextAnalyzerBuilder, Tokenizer

    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    words = Tokenizer.regex(rf"[{unspaced}]|[\p{{L}}\p{{M}}\p{{N}}--[{unspaced}]]+")
    return (
        TextAnalyzerBuilder(words)
        .filter(Filter.remove_long(60))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .filter(Filter.stemmer("english"))
        .build()
    )


def changed(manifest: Manifest, corpus: Corpus) -> bool:
    """Return whether the corpus has changed since it was indexed.

    The content is compared only if names, sizes or times differ.
    """
    if manifest.corpus_stat == corpus.stat_hash():
        return False
    return manifest.corpus_content != corpus.content_hash()


def read_manifest(path: Path) -> Manifest:
    """Return what an index folder says of itself.

    Raises:
        Damaged: there is no manifest, it cannot be read, or it is of another version.
    """
    try:
        content = read_plain(path / MANIFEST, MAX_MANIFEST)
        manifest = Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise Damaged(f"has no {MANIFEST}" if path.exists() else "is not there") from None
    except (OSError, ValidationError) as error:
        raise Damaged(f"is damaged ({MANIFEST}: {type(error).__name__})") from None
    except NotPlain as error:
        raise Damaged(f"is damaged ({MANIFEST} {error})") from None
    built = f"format {manifest.format}, tantivy {manifest.tantivy}"
    here = f"format {FORMAT}, tantivy {version('tantivy')}"
    if built != here:
        raise Damaged(f"is of another version ({built}; here {here})")
    return manifest


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare every file with its size and digest in the manifest.

    Raises:
        Damaged: a file is missing, or is not as it was written.
    """
    for name, (size, digest) in manifest.files.items():
        file, where = path / manifest.directory / name, f"{manifest.directory}/{name}"
        if file.is_symlink() or file.parent.is_symlink():
            raise Damaged(f"is damaged ({where} is a link)")
        try:
            unchanged = file.stat().st_size == size and file_digest(file) == digest
        except OSError:
            raise Damaged(f"is damaged ({where} is missing)") from None
        except NotPlain as error:
            raise Damaged(f"is damaged ({where} {error})") from None
        if not unchanged:
            raise Damaged(f"is damaged ({where} is not as it was written)")


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a regular file; raise NotPlain if it is something else."""
    with open_plain(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
