"""Compare two evaluations of the same questions: paired differences with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.intervals import Estimate, Ratio, as_json, estimate, mcnemar, mean, mean_of
from axpo.evaluation.results import Row, read_evaluation
from axpo.evaluation.summarize import Counted, count


@dataclass(frozen=True)
class Difference:
    """What B does better than A on the questions that both measured."""

    benchmark: str
    title: str
    questions: int  # that both measured
    only_one: int  # that one of them set aside or did not ask
    first: float  # Pass@1 of A on the common questions
    second: float
    difference: Estimate  # second - first, by a paired bootstrap over questions
    better: int  # questions on which more samples of B are right
    worse: int
    p_value: float  # McNemar's exact test of better against worse


@dataclass(frozen=True)
class Change:
    """A question on which more samples, or fewer, are right in B."""

    benchmark: str
    question: str
    text: str
    accepted: list[str]
    first: Sequence[Row]  # the samples of A
    second: Sequence[Row]
    better: bool


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, benchmark by benchmark."""

    differences: list[Difference]
    average: Estimate | None  # of the differences
    warnings: list[str]
    changes: list[Change]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers, and which questions changed."""
        changes = [
            {"benchmark": one.benchmark, "question": one.question, "better": one.better}
            for one in self.changes
        ]
        return {
            "benchmarks": {one.benchmark: asdict(one) for one in self.differences},
            "average": as_json(self.average),
            "warnings": self.warnings,
            "changes": changes,
        }


def compare(first: Path, second: Path) -> Comparison:
    """Compare the evaluations in two folders.

    With one sample a question the test is McNemar's; with several it compares a question's share
    of right samples (a sign test).

    Raises:
        AxpoError: one of them is not there or not complete, or they have no question in common.
    """
    (about_a, asked_a, rows_a), (about_b, asked_b, rows_b) = map(read_evaluation, (first, second))
    counted_a, counted_b = count(asked_a, rows_a), count(asked_b, rows_b)
    texts_a, texts_b = _texts(asked_a), _texts(asked_b)
    found: list[Difference] = []
    ratios: list[Ratio] = []
    changed: list[Change] = []
    for name in about_a["benchmarks"]:
        pairs = _pairs(counted_a.get(name, []), counted_b.get(name, []))
        # Rows of another version of a benchmark may have the same numbers.
        pairs = [pair for pair in pairs if _same(name, pair[0].question, texts_a, texts_b)]
        if not pairs:
            continue
        changes = [_rate(b) - _rate(a) for a, b in pairs]
        ratio = mean(changes, [a.cluster for a, _ in pairs])
        ratios.append(ratio)
        asked = {key for key in (*texts_a, *texts_b) if key[0] == name}
        title = about_a["benchmarks"][name].get("title", name)
        only_one = len(asked) - len(pairs)
        found.append(_difference((name, title), pairs, only_one, estimate(ratio)))
        different = [(a, b) for a, b in pairs if _rate(a) != _rate(b)]
        changed += [_change(name, pair, texts_a) for pair in different]
    if not found:
        raise AxpoError(f"{first} and {second} have no question in common")
    return Comparison(found, mean_of(ratios), _warnings(about_a, about_b), changed)


def _change(name: str, pair: tuple[Counted, Counted], texts: dict[tuple[str, str], Any]) -> Change:
    first, second = pair
    text, accepted = texts[name, first.question]
    better = _rate(second) > _rate(first)
    return Change(name, first.question, text, accepted, first.rows, second.rows, better)


def _difference(
    names: tuple[str, str],
    pairs: Sequence[tuple[Counted, Counted]],
    only_one: int,
    found: Estimate | None,
) -> Difference:
    assert found is not None  # there is a pair
    rates = [(_rate(a), _rate(b)) for a, b in pairs]
    better = sum(b > a for a, b in rates)
    worse = sum(b < a for a, b in rates)
    return Difference(
        benchmark=names[0],
        title=names[1],
        questions=len(pairs),
        only_one=only_one,
        first=sum(a for a, _ in rates) / len(rates),
        second=sum(b for _, b in rates) / len(rates),
        difference=found,
        better=better,
        worse=worse,
        p_value=mcnemar(better, worse),
    )


def _pairs(first: Sequence[Counted], second: Sequence[Counted]) -> list[tuple[Counted, Counted]]:
    others = {one.question: one for one in second}
    return [(one, others[one.question]) for one in first if one.question in others]


def _rate(one: Counted) -> float:
    return one.right / len(one.rows)


def _texts(asked: Sequence[Row]) -> dict[tuple[str, str], Any]:
    return {(row["benchmark"], row["question"]): (row["text"], row["accepted"]) for row in asked}


def _same(
    name: str,
    question: str,
    first: dict[tuple[str, str], Any],
    second: dict[tuple[str, str], Any],
) -> bool:
    return bool(first[name, question] == second[name, question])


def _warnings(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return what differs between two evaluations beside the model."""
    names = ("judge", "samples", "temperature", "tools", "seed")
    return [
        f"{name}: {first.get(name)} and {second.get(name)}"
        for name in names
        if first.get(name) != second.get(name)
    ]
