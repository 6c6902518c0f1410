"""What an evaluation measures: benchmarks, their questions, and how they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.benchmark import Benchmark, Item
from axpo.evaluation.results import Row
from axpo.tasks import Task
from axpo.tasks.judge import Judge
from axpo.tasks.task import SYSTEM, one_line
from rollout_workers.trajectory import Question


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    benchmarks: tuple[Benchmark, ...]
    data: Path
    samples: int
    temperature: float
    judge: Judge
    limit: int | None = None  # questions of each benchmark; None: all

    def to_json(self) -> dict[str, Any]:
        """Return what decides about the numbers."""
        return {
            "benchmarks": {one.name: one.settings for one in self.benchmarks},
            "samples": self.samples,
            "temperature": self.temperature,
            "limit": self.limit,
            "judge": self.judge.describe(),
        }


@dataclass(frozen=True)
class Asked:
    """One question of one benchmark."""

    benchmark: Benchmark
    item: Item
    number: int  # in its benchmark

    @property
    def key(self) -> str:
        """Return the id of the question among all benchmarks."""
        return f"{self.benchmark.name}/{self.item.id}"

    def to_json(self) -> Row:
        """Return the line of questions.jsonl."""
        item = self.item
        return {
            "benchmark": self.benchmark.name,
            "question": item.id,
            "text": item.text,
            "accepted": list(item.accepted),
            "kind": item.kind,
            "categories": dict(item.categories),
            "cluster": item.cluster or item.id,
        }


class SuiteTask(Task):
    """Stand for the benchmarks where the engines expect a task. Answers are scored elsewhere."""

    system = SYSTEM

    def __init__(self, asked: Sequence[Asked], given: Path | None = None) -> None:
        """Take the questions, and where what an image search had found is written."""
        self._asked, self._given = asked, given

    def train(self, index: int) -> Question:
        """Raise: benchmarks are not trained on."""
        raise NotImplementedError

    def held_out(self) -> list[Question]:
        """Return all questions."""
        return [one.item.question(one.benchmark.name, self._given) for one in self._asked]

    def verify(self, question: Question, answer: str | None) -> float:
        """Return 0: the driver scores."""
        return 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Only `verify` goes to the rollout workers: the questions stay here.
        return {}


def load_questions(plan: Plan) -> tuple[list[Asked], list[str]]:
    """Return the questions of all benchmarks, in order, and what is doubtful about their number.

    Raises:
        AxpoError: files are missing or not what they should be; a line for each benchmark.
    """
    asked: list[Asked] = []
    doubts: list[str] = []
    faults: list[str] = []
    for benchmark in plan.benchmarks:
        try:
            items = benchmark.load(plan.data)
        except AxpoError as error:
            faults.append(f"{benchmark.name}: {str(error).removeprefix(f'{benchmark.name}: ')}")
            continue
        except Exception as error:  # the class may be the user's: anything may happen in it
            faults.append(f"{benchmark.name}: {one_line(error)}")
            continue
        doubt = benchmark.wrong_count(len(items))
        doubts += [doubt] if doubt else []
        asked += [Asked(benchmark, item, number) for number, item in enumerate(items[: plan.limit])]
    if faults:
        raise AxpoError("\n".join(faults))
    return asked, doubts
