"""What is indexed: documents from JSONL and text files, and a fingerprint that notices any change of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tool_server.images import ImageError, check

SUFFIXES = (".jsonl", ".txt", ".md")

MAX_PASSAGE = 20_000
"""Characters of one document. Longer texts become several: ranking and snippets of a whole book are poor and slow."""


class CorpusError(Exception):
    """A corpus that cannot be indexed. One line that names the file and row."""


@dataclass(frozen=True)
class Document:
    """One result in the making. Of an image, `text` is the caption and `image` its path relative to the corpus's folder."""

    id: str
    title: str
    text: str
    url: str
    image: str = ""


class Corpus:
    """A JSONL file, a text file, or a folder with any number of both (hidden files and folders left out).

    JSONL rows are texts, {"text", "title"?, "url"?, "id"?}, or images, {"file", "caption", "title"?, "url"?, "id"?} with `file`
    relative to the folder of the corpus. Other keys are ignored.
    """

    def __init__(self, path: Path) -> None:
        """Raises CorpusError where there is nothing to index."""
        self.path = path.absolute()
        self.folder = self.path if self.path.is_dir() else self.path.parent
        if self.path.is_dir():
            self.files = sorted(_walk(self.path))
            if not self.files:
                raise CorpusError(f"{path}: no {', '.join(SUFFIXES)} file in this folder")
        elif self.path.is_file():
            if self.path.suffix not in SUFFIXES:
                raise CorpusError(f"{path}: expected a folder or a {', '.join(SUFFIXES)} file")
            self.files = [self.path]
        else:
            raise CorpusError(f"{path}: no such file or folder")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def stat_hash(self) -> str:
        """Changes with any name, size or modification time. No file is read."""
        stats = [
            (self._name(file), (stat := file.stat()).st_size, stat.st_mtime_ns)
            for file in self.files
        ]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def content_hash(self) -> str:
        """Changes with any name or content. Reads every file."""
        sha = hashlib.sha256()
        for file in self.files:
            sha.update(self._header(file))
            with file.open("rb") as lines:
                for block in iter(lambda: lines.read(1 << 20), b""):
                    sha.update(block)
        return sha.hexdigest()

    def documents(
        self, sha: Any, progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[Document]:
        """Every document, in order. What is read also updates `sha` as in `content_hash`; `progress` gets bytes read so far.

        Raises CorpusError at the first bad row.
        """
        done = 0
        for file in self.files:
            sha.update(self._header(file))
            name = self._name(file)
            with file.open("rb") as lines:
                whole_file = file.suffix != ".jsonl"
                for number, raw in enumerate([lines.read()] if whole_file else lines, 1):
                    sha.update(raw)
                    done += len(raw)
                    where = str(file) if whole_file else f"{file}, row {number}"
                    try:
                        text = raw.decode("utf-8-sig")
                    except UnicodeDecodeError as error:
                        raise CorpusError(
                            f"{where}: not UTF-8: {error.reason} at byte {error.start}"
                        ) from None
                    if not text.strip():
                        continue
                    elif whole_file:
                        yield from _passages(Document(name, file.stem, text, ""))
                    else:
                        yield from _passages(self._row(text, where, f"{name}:{number}"))
                    progress(done)

    def _row(self, line: str, where: str, default_id: str) -> Document:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{where}: expected an object")
        is_image = "file" in row
        text = _text(row, "caption" if is_image else "text", where)
        if not text.strip():
            raise CorpusError(f"{where}: {'caption' if is_image else 'text'}: expected a text")
        file = _text(row, "file", where)
        if is_image:
            self._check_image(file, where)
        return Document(
            _text(row, "id", where) or default_id,
            _text(row, "title", where),
            text,
            _text(row, "url", where),
            file,
        )

    def _check_image(self, file: str, where: str) -> None:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise CorpusError(
                f"{where}: file: expected a path inside the folder of the corpus, got {file!r}"
            )
        try:
            check(self.folder / path)
        except ImageError as error:
            raise CorpusError(f"{where}: file: {self.folder / path} {error}") from None

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _header(self, file: Path) -> bytes:
        return json.dumps([self._name(file), file.stat().st_size]).encode()


def clean(text: str) -> str:
    """Lone surrogates, which JSON can spell and UTF-8 cannot, become '?'."""
    return text.encode("utf-8", "replace").decode()


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise CorpusError(f"{where}: {key}: expected a text")
    return "" if value is None else clean(str(value))


def _passages(document: Document) -> Iterator[Document]:
    """The document, cut at white space into parts of at most `MAX_PASSAGE` characters."""
    start, part, text = 0, 1, document.text
    if len(text) <= MAX_PASSAGE:
        yield document
        return
    while start < len(text):
        stop = start + MAX_PASSAGE
        if stop < len(text):
            space = max(text.rfind(mark, start + MAX_PASSAGE // 2, stop) for mark in " \n")
            stop = space + 1 if space > 0 else stop
        title = f"{document.title} (part {part})".strip()
        yield Document(
            f"{document.id}#{part}", title, text[start:stop], document.url, document.image
        )
        start, part = stop, part + 1


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix in SUFFIXES
        )
