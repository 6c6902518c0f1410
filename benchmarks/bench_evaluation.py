"""What `axpo eval` on a benchmark costs beside the engine: reading, asking, scoring, writing."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from axpo.evaluation.benchmark import Benchmark, Item
from axpo.evaluation.measure import measure as evaluate
from axpo.evaluation.plan import Plan, SuiteTask, load_questions
from axpo.evaluation.results import Results
from axpo.record.records import Decode
from axpo.tasks.embedded.small_digit import SmallDigitConfig
from axpo.tasks.judge import judges
from benchmarks.engines import IN_FLIGHT, MODEL, each, engines
from benchmarks.result import Entry, at_most
from benchmarks.scripted import Script
from benchmarks.timing import timed
from rollout_workers.chat import Chat
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import LazyImage, Pixels, Question, stored

QUESTIONS, SAMPLES, ROUNDS = 128, 4, 3


class Digits(Benchmark):
    """The questions of the embedded task, whose images are drawn when they are asked."""

    name = "digits"

    def items(self, data: Path) -> Iterator[Item]:
        """Yield the first questions of the task."""
        task = SmallDigitConfig().load()
        for index in range(QUESTIONS):
            question = task.train(index)
            image = LazyImage(partial(_image, task.train, index))
            yield Item(str(index), question.text, (image,), (question.answer,))


def measure() -> Iterator[Entry]:
    """Yield the entry."""
    decode = Chat.load(MODEL).decode
    plan = Plan((Digits(),), Path(), SAMPLES, 1.0, judges.parse("exact"))
    with engines() as pool, tempfile.TemporaryDirectory() as folder:
        asked, _ = load_questions(plan)
        questions = [stored(question) for question in SuiteTask(asked).held_out()]
        ratios, seconds = [], []
        for number in range(ROUNDS + 1):
            ours = partial(_evaluate, plan, pool, decode, Path(folder) / str(number))
            bare = partial(each, pool, "bare", questions, SAMPLES, 0)
            # The other side goes first in every other round: a machine that slows down costs both.
            order = (ours, bare) if number % 2 else (bare, ours)
            took = {side: _from_empty_caches(pool, side) for side in order}
            # The first round is a warm-up.
            if number:
                ratios.append(took[ours] / took[bare])
                seconds.append(took[ours])
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    detail = (
        f"{QUESTIONS} questions with an image, {SAMPLES} samples each, {IN_FLIGHT} in flight; "
        f"evaluation {statistics.median(seconds):.1f} s, results and summary written; "
        f"ratios {listed}; median of {ROUNDS}"
    )
    ratio = round(statistics.median(ratios), 4)
    yield at_most("eval_vs_bare_engine", ratio, 1.1, "x", detail)


def _evaluate(plan: Plan, pool: RolloutPool, decode: Decode, out: Path) -> None:
    """Do what the command does from the first row to the summary, on engines that run."""

    @contextmanager
    def running(_: SuiteTask) -> Iterator[tuple[RolloutPool, Decode]]:
        yield pool, decode

    asked, _ = load_questions(plan)
    with Results(out, plan.to_json(), [one.to_json() for one in asked]) as results:
        rows, summary = evaluate(plan, asked, results, running, lambda *_: None)
        results.finish(rows, summary)
    if len(rows) != QUESTIONS * SAMPLES:
        raise AssertionError(f"{len(rows)} samples")


def _from_empty_caches(pool: RolloutPool, side: partial[Any]) -> float:
    each(pool, "set", Script(mean=96, sigma=0.6))
    _, seconds = timed(side)
    return seconds


def _image(question: Callable[[int], Question], index: int) -> Pixels:
    return cast(Pixels, question(index).images[0])
