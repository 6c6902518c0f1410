"""The learner's gradient on texts of drawn lengths: where padding is much, and where it is none.

`bench_layouts` measures the demo's own rollouts, whose lengths are much the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.bench_layouts import BUDGET, Form, Step
from benchmarks.recorded import MODEL
from benchmarks.result import Entry, at_least
from benchmarks.timing import medians
from learner.credit import TrainItem
from rollout_workers.trajectory import EndReason, PolicySegment, Question, RolloutStats, Trajectory

REPEATS = 3
SPREAD_ROWS = 48
SPREAD = 1.0
"""Sigma of the log-normal lengths."""
MEDIAN, LONGEST = 256, 2048
"""Tokens of the spread rows."""
ROLLOUTS, TOKENS, SHARED = 8, 1024, 256
"""Of one question: long responses behind a short prompt."""
WORDS = 700
"""Ids below this are words of the embedded model."""


def texts(lengths: Sequence[int], shared: int) -> list[TrainItem]:
    """Return random texts as rollouts of one question, trained on all but the prompt.

    Args:
        lengths: tokens of each, prompt included.
        shared: tokens of the prompt.
    """
    random = np.random.default_rng(0)
    question = Question("texts", "", images=(), answer="")
    prompt = random.integers(0, WORDS, shared, dtype=np.int32)
    items = []
    for number, length in enumerate(lengths):
        response = random.integers(0, WORDS, length - shared, dtype=np.int32)
        logprobs = np.full(len(response), -np.log(WORDS), np.float32)
        segment = PolicySegment(response, logprobs, policy_version=0)
        trajectory = Trajectory(
            question_id=question.id,
            rollout=number,
            prompt_ids=prompt,
            segments=(segment,),
            end=EndReason.ANSWERED,
            answer="",
            reward=float(number % 2),
            stats=RolloutStats(prompt_tokens=shared, last_prompt_tokens=shared),
        )
        advantages = np.full(len(response), 2.0 * (number % 2) - 1, np.float32)
        mask = np.ones(len(response), bool)
        items.append(TrainItem(question, trajectory, advantages, mask, 1 / len(lengths)))
    return items


def spread_lengths() -> list[int]:
    """Return log-normal lengths."""
    drawn = np.random.default_rng(1).lognormal(np.log(MEDIAN), SPREAD, SPREAD_ROWS)
    lengths: list[int] = np.clip(drawn, 16, LONGEST).astype(int).tolist()
    return lengths


def measure() -> list[Entry]:
    """Return the entries `packed_vs_padded` and `tree_vs_padded_long`."""
    step = Step(MODEL)
    return [_packed(step), _long(step)]


def _packed(step: Step) -> Entry:
    lengths = spread_lengths()
    seconds = _seconds(step, texts(lengths, shared=1), ("plain", "padded", "packed"))
    detail = (
        f"{len(lengths)} texts, lengths log-normal (sigma {SPREAD:g}) around {MEDIAN} tokens, "
        f"{LONGEST:,} at most, {sum(lengths):,} in all; micro-batches of {BUDGET:,} tokens, one "
        f"thread; padded in batch order (sorted by length: {seconds['padded']:.2f} s): "
        f"{seconds['plain']:.2f} s, packed {seconds['packed']:.2f} s"
    )
    ratio = seconds["plain"] / seconds["packed"]
    return at_least("packed_vs_padded", ratio, 1.5, "x", detail)


def _long(step: Step) -> Entry:
    seconds = _seconds(step, texts([TOKENS] * ROLLOUTS, SHARED), ("plain", "tree"))
    detail = (
        f"{ROLLOUTS} rollouts of {TOKENS:,} tokens, of which {SHARED} are shared, one thread: "
        f"{seconds['plain']:.2f} s padded, {seconds['tree']:.2f} s tree"
    )
    ratio = seconds["plain"] / seconds["tree"]
    return at_least("tree_vs_padded_long", ratio, 1, "x", detail)


def _seconds(step: Step, items: Sequence[TrainItem], forms: Sequence[Form]) -> dict[str, float]:
    runs = {str(form): partial(step.seconds, items, form) for form in forms}
    return medians(runs, REPEATS)
