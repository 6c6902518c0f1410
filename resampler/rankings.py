"""Say which prefixes come first: the second half of rule 2 (docs/method.md).

A ranking gives each fork point a score. The lowest score is forked first.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import ClassVar

import numpy as np

from axpo.registry import Registry, Variant
from rollout_workers.trajectory import Span, Trajectory, turns

START = 20
"""Tokens over which ARPO compares entropies."""


class Ranking(Variant):
    """Order the points at which rollouts may be forked."""

    needs_entropies: ClassVar[bool] = False
    """Whether the engine must give the entropy of each sampled token."""

    @abstractmethod
    def score(self, trajectory: Trajectory, span: Span, draw: float) -> float:
        """Return the score of a point: the lowest is forked first.

        Args:
            trajectory: the rollout that would be forked.
            span: the tokens that rank the point, as the fork place says.
            draw: a random number in [0, 1) of the point's own, see `chance`.
        """


rankings: Registry[Ranking] = Registry("rankings", Ranking, core="score")


@rankings.register("confidence")
class Confidence(Ranking):
    """Take the prefixes first whose call is least confident (the paper)."""

    def score(self, trajectory: Trajectory, span: Span, draw: float) -> float:
        return confidence(trajectory, span)


@rankings.register("entropy")
class Entropy(Ranking):
    """Take the prefixes first whose call has the highest entropy."""

    needs_entropies = True

    def score(self, trajectory: Trajectory, span: Span, draw: float) -> float:
        # Negated: the highest entropy comes first.
        return -entropy(trajectory, span)


@rankings.register("random")
class Random(Ranking):
    """Take the prefixes by chance (ablation)."""

    def score(self, trajectory: Trajectory, span: Span, draw: float) -> float:
        return draw


@rankings.register("entropy_rise")
class EntropyRise(Ranking):
    """Take the places first where the entropy rose most since the rollout began (ARPO)."""

    needs_entropies = True

    def score(self, trajectory: Trajectory, span: Span, draw: float) -> float:
        # Negated: the highest rise comes first.
        return -entropy_rise(trajectory, span)


def confidence(trajectory: Trajectory, span: Span) -> float:
    """Return the mean probability, as sampled, over a span; in (0, 1].

    Rule 2 takes it over a whole tool call with both its tags.
    """
    logprobs = trajectory.logprobs[slice(*span)].astype(np.float64)
    return float(np.exp(logprobs).mean())


def entropy(trajectory: Trajectory, span: Span) -> float:
    """Return the mean token entropy over a span, in nats.

    Raises:
        ValueError: the engine was not asked for entropies.
    """
    if trajectory.entropies is None:
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id} "
            "has no entropies, which this ranking needs"
        )
    return float(trajectory.entropies[slice(*span)].astype(np.float64).mean())


def entropy_rise(trajectory: Trajectory, span: Span) -> float:
    """Return how much higher the entropy is at the start of a span than at the rollout's start.

    This is ARPO's Delta H (arXiv 2507.19849, section 3.1) up to its constant, the logarithm of
    the vocabulary's size: the mean over the first `START` tokens of the span, a turn after an
    observation, minus the mean over the first `START` tokens of the rollout. In nats.

    Raises:
        ValueError: the engine was not asked for entropies.
    """
    first, first_stop = turns(trajectory)[0]
    start, stop = span
    now = entropy(trajectory, (start, min(stop, start + START)))
    at_first = entropy(trajectory, (first, min(first_stop, first + START)))
    return now - at_first


def chance(seed: int, batch: int, question_id: str, rollout: int, prefix_tokens: int) -> float:
    """Return a number in [0, 1) that depends on nothing but the arguments.

    So the order in which the groups of a batch finish does not matter.
    """
    # Ids are the user's, and may hold surrogates that UTF-8 refuses.
    key = f"{seed}\0{batch}\0{question_id}\0{rollout}\0{prefix_tokens}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32
