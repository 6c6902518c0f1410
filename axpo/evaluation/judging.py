"""Let a judge say what the rules of the benchmarks leave open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from axpo.errors import AxpoError
from axpo.evaluation.answers import final_text
from axpo.evaluation.benchmark import Item
from axpo.evaluation.plan import Asked, Plan
from axpo.evaluation.results import Row
from axpo.tasks.judge import Judge, Judgement
from axpo.tasks.task import one_line

Progress = Callable[[str, int, int], None]
"""Takes what is done, how much of it, and of how much."""


def judged(
    plan: Plan, asked: Sequence[Asked], rows: Sequence[Row], progress: Progress
) -> list[Row]:
    """Return the rows with the judge's verdicts about what the rules left open.

    Args:
        plan: has the judge.
        asked: the questions.
        rows: the lines of results.jsonl.
        progress: takes what is done.

    Raises:
        AxpoError: the judge refuses, or cannot be started.
    """
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
            yield waiting[future], _verdict_of(future)
    finally:
        # If the key is refused, the others need not be asked.
        threads.shutdown(cancel_futures=True)


def _verdict_of(future: Future[Judgement]) -> Judgement:
    try:
        return future.result()
    except AxpoError:
        raise
    except Exception as error:  # the judge may be the user's: anything may happen in it
        return Judgement(None, fault=one_line(error))


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
