"""What is indexed: documents from JSONL and text files.

A fingerprint notices any change of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from axpo.plain_files import NotPlain, inside, open_plain
from tool_server.images import ImageError, check

if TYPE_CHECKING:
    from hashlib import _Hash

SUFFIXES = (".jsonl", ".txt", ".md")

MAX_PASSAGE = 20_000
"""Characters of one document.

Longer texts become several documents: ranking and snippets of a whole book are poor and slow.
"""

MAX_ROW = 64 << 20
"""Bytes of a row of JSONL or of a text file."""

MAX_BYTES = 256 << 30
"""Bytes of all files."""

BLOCK = 1 << 20
"""Bytes that are read at once."""


class CorpusError(Exception):
    """A corpus that cannot be indexed. One line that names the file and row."""


@dataclass(frozen=True)
class Document:
    """One result in the making.

    Of an image, `text` is the caption and `image` its path relative to the corpus's folder.
    """

    id: str
    title: str
    text: str
    url: str
    image: str = ""


@dataclass(frozen=True)
class _Row:
    """What a file holds of one or, if it is long, several documents."""

    raw: bytes
    where: str  # for messages
    id: str  # of a document that has none of its own


def no_progress(done: int) -> None:
    """Ignore how many bytes have been read."""


class Corpus:
    """A JSONL file, a text file, or a folder with any number of both.

    Hidden files and folders are left out. A pipe, a device or a link that leaves the folder is
    refused.

    JSONL rows are texts, {"text", "title"?, "url"?, "id"?}, or images, {"file", "caption",
    "title"?, "url"?, "id"?} with `file` relative to the folder of the corpus. Other keys are
    ignored.
    """

    def __init__(self, path: Path) -> None:
        """Find the files. Raises CorpusError if there is nothing to index."""
        self.path = path.absolute()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        if self.path.is_dir():
            self.files = sorted(_walk(self.path))
            for file in self.files:
                self._check_plain(file)
            if not self.files:
                raise CorpusError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        elif self.path.is_file():
            if self.path.suffix not in SUFFIXES:
                raise CorpusError(f"{path}: expected a folder or a {', '.join(SUFFIXES)} file")
            self.files = [self.path]
        else:
            reason = "is no regular file" if self.path.exists() else "no such file or folder"
            raise CorpusError(f"{path}: {reason}")
        if self.size > MAX_BYTES:
            raise CorpusError(f"{path}: {self.size:,} bytes, at most {MAX_BYTES:,} are indexed")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def stat_hash(self) -> str:
        """Return a hash that changes with any name, size or modification time.

        No file is read.
        """
        stats = [self._stat(file) for file in self.files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def content_hash(self) -> str:
        """Return a hash that changes with any name or content. Every file is read."""
        sha = hashlib.sha256()
        for file in self.files:
            sha.update(self._header(file))
            with self._open(file) as content:
                while block := content.read(BLOCK):
                    sha.update(block)
        return sha.hexdigest()

    def documents(
        self, sha: _Hash, progress: Callable[[int], None] = no_progress
    ) -> Iterator[Document]:
        """Yield every document, in order.

        Args:
            sha: updated by what is read, as in `content_hash`.
            progress: called with the number of bytes read so far.

        Raises:
            CorpusError: at the first bad row.
        """
        done = 0
        for file in self.files:
            sha.update(self._header(file))
            for row in self._rows(file):
                sha.update(row.raw)
                done += len(row.raw)
                text = _decoded(row)
                # A blank line or an empty file holds no document.
                if not text.strip():
                    continue
                if file.suffix == ".jsonl":
                    yield from _passages(self._document(row, text))
                else:
                    yield from _passages(Document(row.id, file.stem, text, ""))
                progress(done)

    def _rows(self, file: Path) -> Iterator[_Row]:
        """Yield the lines of a JSONL file, or the whole of a text file."""
        name = self._name(file)
        with self._open(file) as lines:
            if file.suffix != ".jsonl":
                yield _Row(_within(lines.read(MAX_ROW + 1), str(file)), str(file), name)
                return
            number = 0
            while raw := lines.readline(MAX_ROW + 1):
                number += 1
                where = f"{file}, row {number}"
                yield _Row(_within(raw, where), where, f"{name}:{number}")

    def _open(self, file: Path) -> BinaryIO:
        try:
            return open_plain(file)
        except NotPlain as error:
            raise CorpusError(f"{file}: {error}") from None

    def _check_plain(self, file: Path) -> None:
        """Refuse a file of the folder that is not in it, or is none."""
        try:
            real = inside(self.folder, self._name(file))
        except NotPlain as error:
            raise CorpusError(f"{file}: {error}") from None
        if not real.is_file():
            raise CorpusError(
                f"{file}: {'is no regular file' if real.exists() else 'is not there'}"
            )

    def _document(self, row: _Row, text: str) -> Document:
        """Return the document of a JSONL row."""
        where = row.where
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise CorpusError(f"{where}: expected an object")
        is_image = "file" in fields
        content_key = "caption" if is_image else "text"
        content = _text(fields, content_key, where)
        if not content.strip():
            raise CorpusError(f"{where}: {content_key}: expected a text")
        image = _text(fields, "file", where)
        if is_image:
            self._check_image(image, where)
        return Document(
            id=_text(fields, "id", where) or row.id,
            title=_text(fields, "title", where),
            text=content,
            url=_text(fields, "url", where),
            image=image,
        )

    def _check_image(self, file: str, where: str) -> None:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise CorpusError(
                f"{where}: file: expected a path inside the folder of the corpus, got {file!r}"
            )
        try:
            check(inside(self.folder, file))
        except (ImageError, NotPlain) as error:
            raise CorpusError(f"{where}: file: {self.folder / path} {error}") from None

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _stat(self, file: Path) -> tuple[str, int, int]:
        stat = file.stat()
        return self._name(file), stat.st_size, stat.st_mtime_ns

    def _header(self, file: Path) -> bytes:
        """Return what the content hash takes of a file besides its content."""
        return json.dumps([self._name(file), file.stat().st_size]).encode()


def clean(text: str) -> str:
    """Replace lone surrogates by '?': JSON can spell them, and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _within(raw: bytes, where: str) -> bytes:
    if len(raw) > MAX_ROW:
        raise CorpusError(f"{where}: more than {MAX_ROW:,} bytes")
    return raw


def _decoded(row: _Row) -> str:
    try:
        return row.raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise CorpusError(f"{row.where}: not UTF-8: {reason}") from None


def _text(fields: dict[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise CorpusError(f"{where}: {key}: expected a text")
    return clean(str(value))


def _passages(document: Document) -> Iterator[Document]:
    """Yield the document, cut at white space into parts of at most `MAX_PASSAGE` characters."""
    text = document.text
    if len(text) <= MAX_PASSAGE:
        yield document
        return
    start, part = 0, 1
    while start < len(text):
        stop = _passage_end(text, start)
        yield Document(
            id=f"{document.id}#{part}",
            title=f"{document.title} (part {part})".strip(),
            text=text[start:stop],
            url=document.url,
            image=document.image,
        )
        start, part = stop, part + 1


def _passage_end(text: str, start: int) -> int:
    stop = start + MAX_PASSAGE
    if stop >= len(text):
        return stop
    # White space in the second half of the passage; without any, cut in the middle of a word.
    half = start + MAX_PASSAGE // 2
    space = max(text.rfind(mark, half, stop) for mark in " \n")
    return space + 1 if space > 0 else stop


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        # Changed in place, so that os.walk does not go into hidden folders.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            if not name.startswith(".") and path.suffix in SUFFIXES:
                yield path
