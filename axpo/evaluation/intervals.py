"""Estimate rates with 95 % intervals, alone and of two evaluations of the same questions.

Every rate here is a ratio of two sums over questions: Pass@1 is the sum of the questions' shares of
right samples over the number of questions; Pass@1 given tool use is the sum of right samples with a
tool over the number of samples with a tool. An interval is a percentile bootstrap over questions.
Rotations and variants of one question are drawn together. The draws are the same every time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
CHUNK = 1000
"""Draws that are computed at once."""
SEED = 20
LEVEL = 0.95
DIGITS = 6
"""Of the ends of an interval: further ones would be those of the draws."""

Numbers = NDArray[np.float64]
_STARTS = range(0, DRAWS, CHUNK)


@dataclass(frozen=True)
class Estimate:
    """A rate, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """Of each question what it adds to a sum above and to one below."""

    above: Sequence[float]
    below: Sequence[float]
    clusters: Sequence[str]

    def value(self) -> float | None:
        """Return the rate; None if the sum below is 0."""
        below = math.fsum(self.below)
        return math.fsum(self.above) / below if below else None


def mean(values: Sequence[float], clusters: Sequence[str]) -> Ratio:
    """Return the mean over questions as a ratio."""
    return Ratio(values, [1.0] * len(values), clusters)


def estimate(ratio: Ratio) -> Estimate | None:
    """Return a rate and its interval; None if it is not defined."""
    value = ratio.value()
    if value is None:
        return None
    drawn = draws(ratio)
    low, high = _ends(drawn[~np.isnan(drawn)])
    return Estimate(value, low, high)


def mean_of(ratios: Sequence[Ratio]) -> Estimate | None:
    """Return the mean of several rates, each with questions of its own, and its interval."""
    values = [ratio.value() for ratio in ratios]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    # Benchmarks are drawn independently of each other.
    drawn = [draws(ratio, SEED + 1 + number) for number, ratio in enumerate(ratios)]
    low, high = _ends(np.mean(drawn, axis=0))
    return Estimate(math.fsum(known) / len(known), low, high)


def draws(ratio: Ratio, seed: int = SEED) -> Numbers:
    """Return the rate in each bootstrap draw, shape [DRAWS]; NaN if a draw has nothing below."""
    names = list(dict.fromkeys(ratio.clusters))
    place = {name: index for index, name in enumerate(names)}
    above, below = np.zeros(len(names)), np.zeros(len(names))
    for cluster, one, other in zip(ratio.clusters, ratio.above, ratio.below, strict=True):
        above[place[cluster]] += one
        below[place[cluster]] += other
    weights = _weights(len(names), seed)
    parts = [_rates(weights[start : start + CHUNK], above, below) for start in _STARTS]
    return np.concatenate(parts)


def _rates(weights: NDArray[np.uint16], above: Numbers, below: Numbers) -> Numbers:
    counts = weights.astype(np.float64)
    total = counts @ below
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn: Numbers = np.where(total > 0, (counts @ above) / total, np.nan)
    return drawn


def mcnemar(better: int, worse: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        better: questions on which the second evaluation does better.
        worse: questions on which it does worse.

    Returns:
        The chance of a split at least as uneven if either side were as likely; 1.0 without any.
    """
    total = better + worse
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, count) for count in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**total)


def as_json(found: Estimate | None) -> Any:
    """Return an estimate for JSON; None stays None."""
    return None if found is None else found.to_json()


# The rates of one benchmark use the same draws.
@functools.lru_cache(maxsize=2)
def _weights(clusters: int, seed: int) -> NDArray[np.uint16]:
    """Return how often each cluster is drawn, shape [DRAWS, clusters].

    Of 2,500 questions that is 50 MB, and in float64 it would be 200 MB.
    """
    generator = np.random.default_rng(seed)
    shares = np.full(clusters, 1 / clusters)
    parts = [generator.multinomial(clusters, shares, size=CHUNK) for _ in _STARTS]
    return np.concatenate([part.astype(np.uint16) for part in parts])


def _ends(drawn: Numbers) -> tuple[float, float]:
    outside = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [outside, 100 - outside])
    return round(float(low), DIGITS), round(float(high), DIGITS)
