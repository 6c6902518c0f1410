"""Means over runs with 95 % percentile bootstrap intervals.

The intervals are over seeds, or over seeds and held-out questions. Letters of shapes: S seeds,
Q questions, M rates, T steps, D draws of the bootstrap.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.evaluation.diagnostics import pass_at_k

DRAWS = 10_000
DRAWS_OF_QUESTIONS = 2_000
"""Fewer, because each of these draws is of S x Q questions: 13 arms of 256 questions take
seconds."""

ENDS = [2.5, 97.5]
"""The percentiles of the draws between which 95 % of them lie."""

RATES = ("pass1", "pass4", "tool_use_rate", "pass1_given_tool", "tool_all_wrong_rate")
"""The M rates of a held-out evaluation, named as in the metrics of training."""

Array: TypeAlias = NDArray[np.float64]
Estimate: TypeAlias = tuple[float, float, float]
"""A mean, and the ends of its interval."""


def estimate(samples: Sequence[float]) -> Estimate:
    """Return the mean with its interval over runs.

    Of one run there is no more than the run itself: the ends are the mean.
    """
    rng = np.random.default_rng(0)
    # Each draw takes as many runs as there are, with replacement.
    drawn = rng.choice(samples, (DRAWS, len(samples)))
    means = drawn.mean(axis=1)
    low, high = np.percentile(means, ENDS)
    return float(np.mean(samples)), float(low), float(high)


def rate_parts(counts: Array) -> Array:
    """Return what each question adds to the numerator and the denominator of each rate.

    Args:
        counts: shape [Q, 4], of each question its rollouts, the right ones, those that call a
            tool and the right ones of these (`axpo.evaluation.diagnostics.question_counts`).

    Returns:
        Numerators and denominators, shape [Q, M, 2], in the order of `RATES`.
    """
    rollouts, right, tool, tool_right = counts.T
    chances = [pass_at_k(int(c), int(n), 4) for c, n in zip(right, rollouts, strict=True)]
    pass4 = np.array(chances)
    uses_tool = tool > 0
    all_wrong = uses_tool & (tool_right == 0)
    # Pass@4 and the all-wrong rate are means over questions, the others over rollouts.
    parts = (
        (right, rollouts),
        (pass4, np.ones_like(pass4)),
        (tool, rollouts),
        (tool_right, tool),
        (all_wrong, uses_tool),
    )
    return np.array(parts, np.float64).transpose(2, 0, 1)


def rates(parts: Array) -> Array:
    """Return the rates of some questions together.

    Args:
        parts: shape [..., Q, M, 2], see `rate_parts`.

    Returns:
        Shares, shape [..., M]; NaN if a denominator is 0.
    """
    return _ratio(parts.sum(axis=-3))


def over_seeds_and_questions(runs: Sequence[Array]) -> list[Estimate]:
    """Return the mean over seeds of each rate, with its interval over seeds and questions.

    All runs are evaluated on the same questions. So a draw of the bootstrap takes S of the S seeds
    with replacement, and one sample of Q of the Q questions for all of them: neither a lucky seed
    nor an easy question then counts as many. A rate that a drawn run does not have is left out of
    the mean of the draw.

    Args:
        runs: for each seed what its questions add to the rates, shape [Q, M, 2] (`rate_parts`).

    Returns:
        M estimates, as shares; NaN for a rate that no run has.

    Raises:
        ValueError: the runs have different numbers of questions.
    """
    if len({len(parts) for parts in runs}) > 1:
        raise ValueError(
            f"evaluations of {[len(parts) for parts in runs]} questions: all runs of an arm must "
            "have answered the same ones"
        )
    rng = np.random.default_rng(0)
    # Which seeds each draw takes, [D, S].
    seeds = rng.integers(len(runs), size=(DRAWS_OF_QUESTIONS, len(runs)))
    questions = len(runs[0])
    even = np.full(questions, 1 / questions)
    # How often each draw takes each question, [D, Q].
    times = rng.multinomial(questions, even, size=DRAWS_OF_QUESTIONS)
    # Numerators and denominators of each seed, had each draw's questions been asked: [D, S, M, 2].
    sums = np.einsum("dq,sqmp->dsmp", times, np.stack(runs), optimize=True)
    drawn = np.take_along_axis(sums, seeds[:, :, None, None], axis=1)
    means = nanmean(_ratio(drawn), axis=1)
    low, high = _ends(means)
    centre = nanmean(np.array([rates(parts) for parts in runs]), axis=0)
    return list(zip(centre.tolist(), low.tolist(), high.tolist(), strict=True))


def band(runs: Array) -> tuple[Array, Array, Array]:
    """Return the mean of curves and both ends of its interval over seeds.

    Args:
        runs: a curve of each seed, shape [S, T]; NaN is left out.

    Returns:
        Mean, lower and upper end, each of shape [T].
    """
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(runs), size=(DRAWS_OF_QUESTIONS, len(runs)))
    means = nanmean(runs[seeds], axis=1)
    low, high = _ends(means)
    return nanmean(runs, axis=0), low, high


def nanmean(values: Array, axis: int) -> Array:
    """Return NumPy's nanmean, without a warning if all values are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis), np.float64)


def _ends(drawn: Array) -> tuple[Array, Array]:
    """Return both ends of the interval of drawn means, shape [D, ...]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(drawn, ENDS, axis=0)
    return low, high


def _ratio(sums: Array) -> Array:
    # 0 / 0 is NaN: a run without such rollouts has no such rate.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1], np.float64)
