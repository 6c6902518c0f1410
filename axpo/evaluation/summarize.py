"""Summarize the answers of an evaluation: rates with intervals, by benchmark and by category.

A question that is set aside counts nowhere: it could not be asked, infrastructure failed, or its
judge gave no verdict. All of these are counted beside the numbers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.evaluation.benchmark import Benchmark
from axpo.evaluation.diagnostics import pass_at_k
from axpo.evaluation.intervals import Ratio, as_json, estimate, mean, mean_of
from axpo.evaluation.quoted import quoted
from axpo.evaluation.results import Row

SetAside = Mapping[str, tuple[str, str]]
"""By question a word, `unusable`, `infrastructure` or `unjudged`, and why."""


@dataclass(frozen=True)
class Counted:
    """The samples of one question."""

    question: str
    cluster: str
    categories: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def right(self) -> int:
        """Return how many samples are right."""
        return sum(row["right"] for row in self.rows)

    def with_tools(self) -> list[Row]:
        """Return the samples that used tools."""
        return [row for row in self.rows if row["used_tools"]]


def summarize(
    questions: Sequence[Row],
    rows: Sequence[Row],
    set_aside: SetAside,
    benchmarks: Sequence[Benchmark],
) -> dict[str, Any]:
    """Return the numbers of an evaluation.

    Args:
        questions: the lines of questions.jsonl.
        rows: the lines of results.jsonl.
        set_aside: the questions that do not count.
        benchmarks: in the order of the table.

    Returns:
        `benchmarks`: by name what `_of_benchmark` says. `average`: the mean of the benchmarks'
        rates, each with a 95 % interval.
    """
    counted = count(questions, rows)
    parts = {}
    for benchmark in benchmarks:
        own = [row for row in questions if row["benchmark"] == benchmark.name]
        parts[benchmark.name] = _of_benchmark(benchmark, own, counted[benchmark.name], set_aside)
    averages = {}
    of_all = [counted[benchmark.name] for benchmark in benchmarks]
    for name in _pass_names(rows):
        ratios = [pass_ratio(of_one, int(name.removeprefix("pass"))) for of_one in of_all]
        averages[name] = as_json(mean_of(ratios))
    return {"benchmarks": parts, "average": averages}


def count(questions: Sequence[Row], rows: Sequence[Row]) -> dict[str, list[Counted]]:
    """Return the questions that count, by benchmark: those with a verdict of every sample."""
    samples: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        samples[row["benchmark"], row["question"]].append(row)
    found: dict[str, list[Counted]] = defaultdict(list)
    for asked in questions:
        name, question = asked["benchmark"], asked["question"]
        own = samples.get((name, question), [])
        if own and all(row["right"] is not None for row in own):
            found[name].append(Counted(question, asked["cluster"], asked["categories"], own))
    return found


def pass_ratio(counted: Sequence[Counted], k: int) -> Ratio:
    """Return unbiased Pass@k over questions."""
    chances = [pass_at_k(one.right, len(one.rows), k) for one in counted]
    return mean(chances, [one.cluster for one in counted])


def _of_benchmark(
    benchmark: Benchmark, asked: Sequence[Row], counted: Sequence[Counted], set_aside: SetAside
) -> dict[str, Any]:
    """Return what is said of one benchmark: counts, rates, categories, and the paper's numbers."""
    prefix = f"{benchmark.name}/"
    why = {key: found for key, found in set_aside.items() if key.startswith(prefix)}
    rows = [row for one in counted for row in one.rows]
    right = {one.question: [bool(row["right"]) for row in one.rows] for one in counted}
    return {
        "title": benchmark.title or benchmark.name,
        "licence": benchmark.licence,
        "expected": benchmark.expected,
        "questions": len(asked),
        "measured": len(counted),
        "set_aside": {
            "counts": dict(sorted(Counter(word for word, _ in why.values()).items())),
            "reasons": {key: reason for key, (_, reason) in sorted(why.items())},
        },
        **_rates(counted),
        **benchmark.further(right),
        "tokens_per_sample": _mean([row["tokens"] for row in rows]),
        "ends": dict(sorted(Counter(row["end"] for row in rows).items())),
        "judged_by": dict(sorted(Counter(row["by"] for row in rows).items())),
        "categories": _by_category(counted),
        "quoted_from_the_paper": quoted(benchmark.name),
    }


def _rates(counted: Sequence[Counted]) -> dict[str, Any]:
    """Return the rates of some questions, each with its interval; None if it is not defined."""
    clusters = [one.cluster for one in counted]
    found: dict[str, Any] = {}
    for name in _pass_names([row for one in counted for row in one.rows]):
        found[name] = as_json(estimate(pass_ratio(counted, int(name.removeprefix("pass")))))
    used = [float(len(one.with_tools())) for one in counted]
    samples = [float(len(one.rows)) for one in counted]
    right = [float(sum(row["right"] for row in one.with_tools())) for one in counted]
    found["tool_use"] = as_json(estimate(Ratio(used, samples, clusters)))
    found["pass1_given_tool"] = as_json(estimate(Ratio(right, used, clusters)))
    for name in sorted({name for one in counted for row in one.rows for name in row["columns"]}):
        sums = [sum(row["columns"].get(name, 0.0) for row in one.rows) for one in counted]
        found[name] = as_json(estimate(Ratio(sums, samples, clusters)))
    return found


def _by_category(counted: Sequence[Counted]) -> dict[str, dict[str, Any]]:
    """Return the rates by category and value, for example ["subject"]["algebra"]."""
    members: dict[str, dict[str, list[Counted]]] = {}
    for one in counted:
        for category, value in one.categories.items():
            members.setdefault(category, {}).setdefault(value, []).append(one)
    return {
        category: {
            value: {"measured": len(own), **_rates(own)} for value, own in sorted(values.items())
        }
        for category, values in members.items()
    }


def _pass_names(rows: Sequence[Row]) -> list[str]:
    """Return `pass1`, `pass2`, `pass4` ... up to the samples of a question, and these."""
    samples = 1 + max((row["sample"] for row in rows), default=-1)
    powers = [2**exponent for exponent in range(samples.bit_length()) if 2**exponent <= samples]
    return [f"pass{k}" for k in sorted({*powers, samples} - {0})]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
