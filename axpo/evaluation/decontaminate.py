"""Find training rows that are questions of benchmarks, and write which and why.

A row is one if a picture of it is a picture of a benchmark, as it is or encoded anew, or if its
text is that of a question (`axpo.evaluation.fingerprints`). Rows are read as training reads them,
one after the other, so memory holds the marks of the benchmarks and a few pictures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from axpo.errors import AxpoError
from axpo.evaluation.benchmark import Benchmark, benchmarks
from axpo.evaluation.fingerprints import ALIKE, Fingerprint, fingerprint, stems
from axpo.evaluation.plan import Asked, Plan, load_questions
from axpo.evaluation.suite import names_of
from axpo.evaluation.trained import Trained
from axpo.tasks.judge import Exact
from rollout_workers.trajectory import Floats, Question, UnusableQuestion, pixels

THREADS = 4
"""A picture of 7680 x 4320 takes 100 MB and more while it is decoded."""
CHUNK = 64
"""Rows whose marks wait for their turn."""

Tell: TypeAlias = Callable[[str, int, int], None]
"""Is told of a source how many of how many rows are done."""


@dataclass(frozen=True)
class Match:
    """A training row that is a question of a benchmark."""

    benchmark: str
    question: str
    why: str  # same picture, alike picture, same text
    alike: float | None = None  # correlation of the thumbnails

    def to_json(self) -> dict[str, Any]:
        """Return what the report says beside source and row."""
        found = {"benchmark": self.benchmark, "question": self.question, "why": self.why}
        return found if self.alike is None else found | {"alike": round(self.alike, 4)}


@dataclass(frozen=True)
class Marks:
    """What is compared of a question."""

    stems: frozenset[str]
    pictures: tuple[Fingerprint, ...] = ()
    fault: str = ""  # why a picture, or the question, cannot be read


@dataclass
class Found:
    """What is said of one source."""

    rows: int
    removed: Counter[str] = field(default_factory=Counter)  # by why
    bad: int = 0


class Index:
    """The marks of all questions of the benchmarks."""

    def __init__(self, asked: Sequence[Asked], tell: Tell, fewest_words: int = 1) -> None:
        """Read the pictures of the benchmarks.

        Args:
            asked: their questions.
            tell: is told of the progress.
            fewest_words: of a text that is compared.

        Of a question whose picture cannot be read only the text is compared; `unread` names it.
        """
        self.unread: list[str] = []
        self._fewest_words = fewest_words
        self._texts: dict[str, Asked] = {}
        self._digests: dict[str, Asked] = {}
        self._thumbnails: list[Floats] = []
        self._owners: list[Asked] = []
        questions = [one.item.question(one.benchmark.name) for one in asked]
        for number, (one, marks) in enumerate(zip(asked, _all_marks(questions), strict=True), 1):
            if marks.fault:
                self.unread.append(marks.fault)
            self._add(one, marks)
            tell("the benchmarks", number, len(asked))
        self._matrix = np.stack(self._thumbnails) if self._thumbnails else None

    def match(self, marks: Marks) -> Match | None:
        """Return the question of a benchmark that these marks are of; None: there is none."""
        for picture in marks.pictures:
            owner = self._digests.get(picture.digest)
            if owner is not None:
                return _match(owner, "same picture")
        for picture in marks.pictures:
            alike = self._most_alike(picture)
            if alike is not None:
                return alike
        for stem in sorted(marks.stems):
            owner = self._texts.get(stem)
            if owner is not None:
                return _match(owner, "same text")
        return None

    def _add(self, one: Asked, marks: Marks) -> None:
        for stem in marks.stems:
            if len(stem.split()) >= self._fewest_words:
                self._texts.setdefault(stem, one)
        for picture in marks.pictures:
            known = picture.digest in self._digests
            self._digests.setdefault(picture.digest, one)
            if picture.thumbnail is not None and not known:
                self._thumbnails.append(picture.thumbnail)
                self._owners.append(one)

    def _most_alike(self, picture: Fingerprint) -> Match | None:
        if picture.thumbnail is None or self._matrix is None:
            return None
        alike = self._matrix @ picture.thumbnail
        best = int(alike.argmax())
        if alike[best] < ALIKE:
            return None
        return _match(self._owners[best], "alike picture", float(alike[best]))


def questions_of(suite: str | None, names: str | None, data: Path) -> list[Asked]:
    """Return the questions of benchmarks, of DynaMath all variants that are there.

    Args:
        suite: a suite; None: the paper's, if there are no names.
        names: of benchmarks, with commas.
        data: the folder of their files.

    Raises:
        AxpoError: there is no such benchmark, or its files are not there or cannot be read.
    """
    chosen = [_benchmark(name) for name in names_of(suite if suite or names else "paper", names)]
    plan = Plan(tuple(chosen), data, samples=1, temperature=1.0, judge=Exact())
    asked, _ = load_questions(plan)
    return asked


def _benchmark(name: str) -> Benchmark:
    """Return a benchmark, with all variants of its questions if it has some."""
    try:
        has_variants = "variants" in benchmarks.class_of(name).model_fields
        return benchmarks.parse({"name": name} | ({"variants": "all"} if has_variants else {}))
    except ValueError as error:
        raise AxpoError(f"--benchmark {error}") from None


def write_report(trained: Sequence[Trained], index: Index, out: Path, tell: Tell) -> list[Found]:
    """Compare what is trained on with the benchmarks, and write the report.

    Args:
        trained: the sources of a recipe.
        index: of the benchmarks.
        out: the report: a line for each row that is a benchmark's or bad, and one for each source.
        tell: is told of the progress.

    Returns:
        What was found in each source.

    Raises:
        AxpoError: there is a report already, or the disk is full.
    """
    if out.exists():
        raise AxpoError(f"{out}: exists; remove it, or give another --out")
    all_found: list[Found] = []
    partial_file = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial_file.open("w", encoding="utf-8") as file:
            for one in trained:
                found = Found(one.rows)
                for line in _compared(one, index, found, tell):
                    file.write(json.dumps(line) + "\n")
                all_found.append(found)
        partial_file.rename(out)
    except OSError as error:
        raise AxpoError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        partial_file.unlink(missing_ok=True)
    return all_found


def _compared(
    trained: Trained, index: Index, found: Found, tell: Tell
) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of one source."""
    source = trained.source.identity()
    for number, marks in enumerate(_all_marks(trained.questions), 1):
        place = {"source": source, "row": number}
        if marks.fault:
            found.bad += 1
            yield place | {"bad": marks.fault}
        elif (match := index.match(marks)) is not None:
            found.removed[match.why] += 1
            yield place | match.to_json()
        tell(trained.source.path, number, found.rows)
    counts = {"rows": found.rows, "removed": dict(found.removed), "bad": found.bad}
    yield {"source": source} | counts


def _all_marks(questions: Iterator[Question] | Sequence[Question]) -> Iterator[Marks]:
    """Yield the marks of each question, in order."""
    with ThreadPoolExecutor(THREADS) as threads:
        for chunk in _chunks(iter(questions)):
            yield from threads.map(_marks, chunk)


def _chunks(questions: Iterator[Question]) -> Iterator[list[Question]]:
    while chunk := list(islice(questions, CHUNK)):
        yield chunk


def _marks(question: Question) -> Marks:
    if question.fault:
        return Marks(frozenset(), fault=question.fault)
    text = stems(question.text)
    try:
        return Marks(text, tuple(fingerprint(pixels(image)) for image in question.images))
    except UnusableQuestion as error:
        return Marks(text, fault=str(error))


def _match(owner: Asked, why: str, alike: float | None = None) -> Match:
    return Match(owner.benchmark.name, owner.item.id, why, alike)
