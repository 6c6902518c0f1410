"""Measure benchmarks: ask every question, score the answers, let a judge say what is left.

One start of the engines serves all benchmarks. Rules score an answer when its question is finished.
What they cannot tell waits for the judge, who comes after the last question, when the engines are
gone and a local judge has their memory. Every step is on disk before the next one begins, so that
an evaluation that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.answers import final_text
from axpo.evaluation.benchmark import Benchmark, Item, Score
from axpo.evaluation.results import GIVEN, IMAGES, Results, Row, disk_error
from axpo.evaluation.summarize import summarize
from axpo.record.records import Decode, ImageFolder, group_to_json
from axpo.tasks import Task
from axpo.tasks.judge import Judge, Judgement
from axpo.tasks.task import SYSTEM, one_line
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import (
    Group,
    ObservationSegment,
    Question,
    Segment,
    SpecialTokens,
    Trajectory,
    UnusableQuestion,
    pixels,
    turns,
    uses_tools,
)
from tool_server.images import fit

SCORERS = 4
"""Threads that score: math-verify compares in processes of its own."""

SHOWN = 6
"""Questions of each benchmark whose whole rollouts are kept for the page."""

SHOWN_SIDE = 1280
"""Pixels; larger pictures of these are scaled down."""

Progress = Callable[[str, int, int], None]
"""Takes what is done, how much of it, and of how much."""

Engines = Callable[["SuiteTask"], AbstractContextManager[tuple[RolloutPool, Decode]]]
"""Starts engines for the questions."""


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


def measure(
    plan: Plan, asked: Sequence[Asked], results: Results, engines: Engines, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    """Ask what is not answered yet, and judge it.

    Args:
        plan: what is measured.
        asked: its questions, in order.
        results: the folder, with what is there already.
        engines: starts engines; not called if every question is answered.
        progress: takes what is done.

    Returns:
        The lines of results.jsonl in their order, and the numbers of `axpo.evaluation.summarize`.

    Raises:
        AxpoError: the disk is full, or the judge refuses. What was done is on disk.
    """
    set_aside: dict[str, tuple[str, str]] = {}
    left = [one for one in asked if one.key not in results.done]
    if left:
        task = SuiteTask(left, results.path / GIVEN)
        with engines(task) as (pool, decode):
            set_aside = _ask(plan, left, task, results, _Driver(pool, decode, progress))
    rows = _in_order(results.rows, asked)
    rows = _judged(plan, asked, rows, progress)
    for row in rows:
        if row["right"] is None:
            set_aside[f"{row['benchmark']}/{row['question']}"] = ("unjudged", row["fault"])
    return rows, summarize([one.to_json() for one in asked], rows, set_aside, plan.benchmarks)


@dataclass(frozen=True)
class _Driver:
    """What asks."""

    pool: RolloutPool
    decode: Decode
    progress: Progress


def _ask(
    plan: Plan, left: Sequence[Asked], task: SuiteTask, results: Results, driver: _Driver
) -> dict[str, tuple[str, str]]:
    """Ask questions and keep their answers.

    Returns:
        By question why it is set aside: a word, and a line.
    """
    by_key = {one.key: one for one in left}
    tokens = driver.pool.ready()
    keeper = _Keeper(results, driver.decode, tokens)
    set_aside: dict[str, tuple[str, str]] = {}
    answered: set[str] = set()
    with ThreadPoolExecutor(SCORERS, "scorer") as scorers:
        waiting: dict[Future[list[Row]], str] = {}
        outcomes = driver.pool.outcomes(
            task.held_out(), 0, plan.samples, temperature=plan.temperature, evaluating=True
        )
        try:
            for outcome in outcomes:
                if isinstance(outcome, UnusableQuestion):
                    keeper.unusable.append(str(outcome))
                else:
                    one = by_key[outcome.question.id]
                    answered.add(one.key)
                    waiting[scorers.submit(keeper.scored, one, outcome)] = one.key
                for future in [future for future in waiting if future.done()]:
                    set_aside |= keeper.kept(future, waiting.pop(future))
                driver.progress("questions", len(answered) + len(keeper.unusable), len(left))
        finally:
            # If it is interrupted, what is answered is kept, too.
            for future in as_completed(list(waiting)):
                set_aside |= keeper.kept(future, waiting.pop(future))
    return _unusable(left, answered, keeper.unusable) | set_aside


class _Keeper:
    """Turn finished groups into rows, and keep them."""

    def __init__(self, results: Results, decode: Decode, tokens: SpecialTokens) -> None:
        self._results, self._decode, self._tokens = results, decode, tokens
        self._images = ImageFolder(results.path / IMAGES)
        self.unusable: list[str] = []
        self._shown: dict[str, Row] = {}

    def scored(self, one: Asked, group: Group) -> list[Row]:
        """Return the rows of a group; called in a scorer's thread."""
        for rollout in group.rollouts:
            if rollout.end.infrastructure:
                raise _Lost(rollout.stats.fault or rollout.end.value)
        rows = [_row(one, rollout, self._tokens) for rollout in group.rollouts]
        if one.number < SHOWN:
            try:
                self._shown[one.key] = self._record(one, group)
            except OSError as error:
                raise disk_error(self._results.path, error) from None
        return rows

    def kept(self, future: Future[list[Row]], key: str) -> dict[str, tuple[str, str]]:
        """Keep the rows of a question, or return why there are none."""
        try:
            rows = future.result()
        except AxpoError:
            raise
        except Exception as error:  # of the machine, or of a user's benchmark
            reason = str(error) if isinstance(error, _Lost) else one_line(error)
            return {key: ("infrastructure", reason)}
        self._results.add(rows, self._shown.pop(key, None))
        return {}

    def _record(self, one: Asked, group: Group) -> Row:
        images = tuple(fit(pixels(image), SHOWN_SIDE, None) for image in group.question.images)
        rollouts = tuple(_smaller(rollout) for rollout in group.rollouts)
        question = replace(group.question, images=images)
        shown = replace(group, question=question, rollouts=rollouts)
        record = group_to_json(shown, 0, self._decode, self._images)
        return {"benchmark": one.benchmark.name, "question_id": one.key, **record}


class _Lost(Exception):
    """A rollout was ended by infrastructure."""


def _row(one: Asked, rollout: Trajectory, tokens: SpecialTokens) -> Row:
    """Return the line of results.jsonl of one sample."""
    answer = (rollout.answer or "").strip()
    # Without an answer there is nothing to compare; an empty text stands in every truth.
    score = one.benchmark.score(one.item, answer) if answer else _no_answer(one)
    return {
        "benchmark": one.benchmark.name,
        "question": one.item.id,
        "sample": rollout.rollout,
        "answer": rollout.answer,
        "right": score.right,
        "by": "rule" if score.right is not None else "judge",
        "reply": "",
        "fault": "",
        "columns": dict(score.columns),
        "used_tools": uses_tools(rollout, tokens),
        "tools": list(rollout.stats.tools),
        "tool_calls": rollout.stats.tool_calls,
        "tokens": rollout.policy_tokens,
        "turns": len(turns(rollout)),
        "end": rollout.end.value,
    }


def _no_answer(one: Asked) -> Score:
    # The columns of the benchmark, all at zero.
    columns = one.benchmark.score(one.item, "\u2205").columns
    return Score(False, dict.fromkeys(columns, 0.0))


def _unusable(
    left: Sequence[Asked], answered: set[str], messages: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Return the questions that could not be asked, each with its message."""
    # A message begins with `question KEY: `, and a key may have a colon.
    by_start = {f"question {one.key}: ": one.key for one in left if one.key not in answered}
    found = dict.fromkeys(by_start.values(), ("unusable", "cannot be asked"))
    for text in messages:
        for start, key in by_start.items():
            if text.startswith(start):
                found[key] = ("unusable", text.removeprefix(start))
    return found


def _judged(
    plan: Plan, asked: Sequence[Asked], rows: Sequence[Row], progress: Progress
) -> list[Row]:
    """Return the rows with the judge's verdicts about what the rules left open."""
    items = {one.key: one.item for one in asked}
    # Equal answers to one question are judged once.
    cases = list(dict.fromkeys(_case(row) for row in rows if row["right"] is None))
    if not cases:
        return list(rows)
    found: dict[tuple[str, str], Judgement] = {}
    with plan.judge.opened() as judge:
        for case, judgement in _judgements(judge, items, cases):
            found[case] = judgement
            progress("judged", len(found), len(cases))
    return [_with_verdict(row, found, plan.judge) for row in rows]


def _judgements(
    judge: Judge, items: Mapping[str, Item], cases: Sequence[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], Judgement]]:
    threads = ThreadPoolExecutor(judge.concurrency_limit, "judge")
    try:
        waiting: dict[Future[Judgement], tuple[str, str]] = {}
        for key, given in cases:
            item = items[key]
            future = threads.submit(judge.judge, item.text, item.truths(), given)
            waiting[future] = (key, given)
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        # If the key is refused, the others need not be asked.
        threads.shutdown(cancel_futures=True)


def _with_verdict(row: Row, found: Mapping[tuple[str, str], Judgement], judge: Judge) -> Row:
    if row["right"] is not None:
        return row
    judgement = found[_case(row)]
    return {
        **row,
        "right": judgement.right,
        "by": judge.describe(),
        "reply": judgement.reply,
        "fault": judgement.fault,
    }


def _case(row: Row) -> tuple[str, str]:
    """Return the question and the answer that a judge reads."""
    return f"{row['benchmark']}/{row['question']}", final_text(row["answer"])


def _in_order(rows: Sequence[Row], asked: Sequence[Asked]) -> list[Row]:
    """Return the rows of these questions in their order, sample by sample."""
    place = {one.key: index for index, one in enumerate(asked)}
    known = [row for row in rows if f"{row['benchmark']}/{row['question']}" in place]
    return sorted(
        known, key=lambda row: (place[f"{row['benchmark']}/{row['question']}"], row["sample"])
    )


def _smaller(rollout: Trajectory) -> Trajectory:
    segments: list[Segment] = []
    for segment in rollout.segments:
        if isinstance(segment, ObservationSegment):
            images = tuple(fit(image, SHOWN_SIDE, None) for image in segment.images)
            segment = replace(segment, images=images)
        segments.append(segment)
    return replace(rollout, segments=tuple(segments))
