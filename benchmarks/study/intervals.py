"""Means over runs with 95 % percentile bootstrap intervals: over seeds, and over seeds and held-out questions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.evaluation.diagnostics import pass_at_k

DRAWS = 10_000
DRAWS_OF_QUESTIONS = 2_000
"""Fewer where each draw is of S x Q questions: 13 arms of 256 questions take seconds."""

RATES = ("pass1", "pass4", "tool_use_rate", "pass1_given_tool", "tool_all_wrong_rate")
"""The M rates of a held-out evaluation, named as in training's metrics."""

Array: TypeAlias = NDArray[np.float64]
Estimate: TypeAlias = tuple[float, float, float]
"""Mean, and the ends of its interval."""


def estimate(samples: Sequence[float]) -> Estimate:
    """Mean with its interval over runs; of one run there is no more than the run itself."""
    drawn = np.random.default_rng(0).choice(samples, (DRAWS, len(samples)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(np.mean(samples)), float(low), float(high)


def rate_parts(counts: Array) -> Array:
    """[Q, 4] of `axpo.training.metrics.question_counts` -> [Q, M, 2]: what each question adds to numerator and denominator of each of `RATES`."""
    rollouts, right, tool, tool_right = counts.T
    pass4 = np.array([pass_at_k(int(c), int(n), 4) for c, n in zip(right, rollouts, strict=True)])
    parts = (
        (right, rollouts),
        (pass4, np.ones_like(pass4)),
        (tool, rollouts),
        (tool_right, tool),
        ((tool > 0) & (tool_right == 0), tool > 0),
    )
    return np.array(parts, np.float64).transpose(2, 0, 1)


def rates(parts: Array) -> Array:
    """[..., Q, M, 2] -> [..., M]; NaN where a denominator is 0."""
    return _ratio(parts.sum(axis=-3))


def over_seeds_and_questions(runs: Sequence[Array]) -> list[Estimate]:
    """Mean over the seeds of each of the M rates, from a run's [Q, M, 2] of each seed, in shares.

    All runs are evaluated on the same questions: a draw of the bootstrap takes S of the S seeds with replacement, and one sample of Q of
    the Q questions for all of them, so that neither a lucky seed nor an easy question counts as many. A rate that a drawn run does not
    have is left out of the draw's mean; all NaN where no run has it. Raises ValueError where runs have different numbers of questions.
    """
    if len({len(parts) for parts in runs}) > 1:
        raise ValueError(
            f"evaluations of {[len(parts) for parts in runs]} questions: all runs of an arm must have answered the same ones"
        )
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(runs), size=(DRAWS_OF_QUESTIONS, len(runs)))
    questions = len(runs[0])
    times = rng.multinomial(
        questions, np.full(questions, 1 / questions), size=DRAWS_OF_QUESTIONS
    )  # each question is taken
    sums = np.einsum("dq,sqmp->dsmp", times, np.stack(runs), optimize=True)
    means = nanmean(_ratio(np.take_along_axis(sums, seeds[:, :, None, None], axis=1)), axis=1)
    centre = nanmean(np.array([rates(parts) for parts in runs]), axis=0)
    low, high = _ends(means)
    return [(float(m), float(a), float(b)) for m, a, b in zip(centre, low, high, strict=True)]


def band(runs: Array) -> tuple[Array, Array, Array]:
    """Mean and both ends of its interval over seeds, [T] each, of curves [S, T]; NaN is left out."""
    seeds = np.random.default_rng(0).integers(len(runs), size=(DRAWS_OF_QUESTIONS, len(runs)))
    return nanmean(runs, axis=0), *_ends(nanmean(runs[seeds], axis=1))


def nanmean(values: Array, axis: int) -> Array:
    """NumPy's, without a warning where all is NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis), np.float64)


def _ends(drawn: Array) -> tuple[Array, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def _ratio(sums: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1], np.float64)
