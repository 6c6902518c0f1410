"""Build the embedded index of a corpus (see `index.py` for the folder that it becomes)."""

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
from typing import TYPE_CHECKING, TypeAlias

from tool_server.search.corpus import Corpus, CorpusError
from tool_server.search.index import (
    FORMAT,
    MANIFEST,
    Damaged,
    Kind,
    Manifest,
    analyser,
    changed,
    check_files,
    file_digest,
    read_manifest,
)

if TYPE_CHECKING:
    from hashlib import _Hash

HEAP_BYTES = 128_000_000
"""Memory of a build: the documents that tantivy holds before it writes them."""

Progress: TypeAlias = Callable[[int, int], None]
"""Gets bytes read and bytes in all."""


def default_out(corpus: Path) -> Path:
    """Return the folder of a corpus's index.

    `data/wiki.jsonl` -> `data/wiki.index`; `docs/` -> `docs.index`.
    """
    path = corpus.absolute()
    name = path.name if path.is_dir() else path.stem
    return path.parent / f"{name}.index"


def no_progress(done: int, total: int) -> None:
    """Ignore how much of a corpus has been read."""


def build(path: Path, out: Path, progress: Progress = no_progress) -> tuple[Manifest, bool]:
    """Index a corpus. There is nothing to do if the folder holds that index already, and whole.

    A failure leaves what was there. Readers of the old index keep it until they close.

    Args:
        path: the corpus.
        out: folder of the index.
        progress: gets bytes read and bytes in all.

    Returns:
        The manifest, and whether anything was built.

    Raises:
        CorpusError: the corpus cannot be indexed, or not into this folder.
    """
    corpus = Corpus(path)
    if out.exists() and not _is_index_folder(out):
        raise CorpusError(f"{out}: exists and is not an index; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with _exclusive(out):
        current = _current(corpus, out)
        if current is not None:
            return current, False
        directory = Path(tempfile.mkdtemp(prefix="index-", dir=out))
        directory.chmod(0o755)  # mkdtemp made it for the builder alone
        try:
            manifest = _write(corpus, out, directory, progress)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        # Until the new manifest is in its place, the folder is the old index.
        temporary = out / f"{MANIFEST}.new"
        temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        os.replace(temporary, out / MANIFEST)
        _clear(out, keep=manifest.directory)
        return manifest, True


def _is_index_folder(out: Path) -> bool:
    """Return whether `out` is an index, or a folder with nothing but what a build left there."""
    if (out / MANIFEST).exists():
        return True
    return out.is_dir() and all(_ours(path.name) for path in out.iterdir())


def _current(corpus: Corpus, out: Path) -> Manifest | None:
    """Return the manifest of the folder if it is whole and of the corpus as it is now."""
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
    except Damaged:
        return None
    same_place = manifest.corpus == os.path.relpath(corpus.path, out.absolute())
    return manifest if not changed(manifest, corpus) and same_place else None


def _write(corpus: Corpus, out: Path, directory: Path, progress: Progress) -> Manifest:
    """Write the index of a corpus into an empty directory, and return its manifest."""
    total, stat, sha = corpus.size, corpus.stat_hash(), hashlib.sha256()

    def read(done: int) -> None:
        progress(done, total)

    documents, kind = _add_documents(corpus, directory, sha, read)
    if Corpus(corpus.path).stat_hash() != stat:
        raise CorpusError(f"{corpus.path}: changed while it was read; build again")
    for lock in directory.glob(".tantivy-*.lock"):
        lock.unlink()
    for file in directory.iterdir():
        file.chmod(0o644)  # tantivy writes two of them for the builder alone
    return Manifest(
        format=FORMAT,
        tantivy=version("tantivy"),
        kind=kind,
        documents=documents,
        corpus=os.path.relpath(corpus.path, out.absolute()),
        folder=os.path.relpath(corpus.folder, out.absolute()),
        corpus_content=sha.hexdigest(),
        corpus_stat=stat,
        directory=directory.name,
        # Checked whenever the index is opened.
        files={
            file.name: (file.stat().st_size, file_digest(file))
            for file in sorted(directory.iterdir())
        },
    )


def _add_documents(
    corpus: Corpus, directory: Path, sha: _Hash, progress: Callable[[int], None]
) -> tuple[int, Kind]:
    """Index the documents of a corpus. Return how many there are, and of which kind."""
    import tantivy

    # "text" is what is searched, "row" what a result shows.
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name="words", index_option="freq")
    builder.add_bytes_field("row", stored=True)
    index = tantivy.Index(builder.build(), path=str(directory))
    index.register_tokenizer("words", analyser())
    # With one thread documents keep their order, so ties do.
    writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)
    documents = 0
    kind: Kind = "texts"
    try:
        for document in corpus.documents(sha, progress):
            kind_here: Kind = "images" if document.image else "texts"
            if documents and kind_here != kind:
                raise CorpusError(
                    f"{corpus.path}: holds both texts and images, from {document.id} on; build one "
                    "index of each"
                )
            kind = kind_here
            # One field, the title counted twice. With a field each, a frequent word is rare among
            # titles, so a title that holds it beats the document that holds every word asked for:
            # recall@5 of planted documents was 0.05, so it is 1.00.
            words = [document.title, document.title, document.text]
            row = json.dumps(asdict(document)).encode()
            writer.add_document(tantivy.Document(text=words, row=row))
            documents += 1
        if not documents:
            raise CorpusError(f"{corpus.path}: no documents")
        writer.commit()
    except BaseException:
        writer.rollback()
        raise
    finally:
        writer.wait_merging_threads()  # they write to the directory until then
    return documents, kind


def _ours(name: str) -> bool:
    return name.startswith("index-") or name in (MANIFEST, f"{MANIFEST}.new", ".lock")


def _clear(out: Path, keep: str) -> None:
    """Remove what earlier or interrupted builds left. Open readers keep their mapped files."""
    for leftover in out.glob("index-*"):
        if leftover.name != keep:
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Let one build at a time work in a folder."""
    # The kernel lets go of the lock when its holder dies, so a killed build leaves none.
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorpusError(f"{out}: another build is running") from None
        yield
