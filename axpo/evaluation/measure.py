"""Measure benchmarks: ask every question, score the answers, let a judge say what is left.

One start of the engines serves all benchmarks. Rules score an answer when its question is finished.
What they cannot tell waits for the judge, who comes after the last question, when the engines are
gone and a local judge has their memory. Every step is on disk before the next one begins, so that
an evaluation that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from axpo.errors import AxpoError
from axpo.evaluation.benchmark import Score
from axpo.evaluation.judging import Progress, judged
from axpo.evaluation.plan import Asked, Plan, SuiteTask
from axpo.evaluation.results import GIVEN, IMAGES, Results, Row, disk_error
from axpo.evaluation.summarize import summarize
from axpo.record.records import Decode, ImageFolder, group_to_json
from axpo.tasks.task import one_line
from rollout_workers.images import fetched
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import (
    Group,
    ObservationSegment,
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

Engines = Callable[[SuiteTask], AbstractContextManager[tuple[RolloutPool, Decode]]]
"""Starts engines for the questions."""


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
    rows = judged(plan, asked, rows, progress)
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
            smaller = [fit(image, SHOWN_SIDE, None) for image in fetched(segment.images)]
            segment = replace(segment, images=tuple(smaller))
        segments.append(segment)
    return replace(rollout, segments=tuple(segments))
