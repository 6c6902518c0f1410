"""Groups written by hand: token ids with the probability each was sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from resampler.places import FirstCall, ForkPlace
from resampler.rankings import Confidence, Ranking
from resampler.select import Candidate, Rules, candidates, in_depth
from rollout_workers.trajectory import (
    EndReason,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Trajectory,
)
from tests.tokens import TOKENS

Sampled: TypeAlias = tuple[int, float]
"""A token id and the probability it was sampled with."""


def direct(reward: float, rollout: int = 0, question: str = "q") -> Trajectory:
    """Return a rollout of thinking and an answer, without a call."""
    return turns([[(50, 0.9), (4, 0.9), (51, 0.9), (2, 0.9)]], reward, rollout, question)


def calling(
    p: float,
    reward: float = 0.0,
    rollout: int = 0,
    question: str = "q",
    *,
    entropy: float | None = None,
) -> Trajectory:
    """Return a rollout of thinking, a call, an observation and an answer.

    The call has three tokens, each sampled with probability `p`. The prefix has 3 tokens.
    """
    call = [(50, 0.1), (4, 0.1), (5, p), (60, p), (6, p), (2, 0.1)]
    answer = [(4, 0.9), (51, 0.9), (2, 0.9)]
    return turns([call, [70, 71], answer], reward, rollout, question, entropy=entropy)


def turns(
    parts: Sequence[Sequence[Sampled] | Sequence[int]],
    reward: float,
    rollout: int = 0,
    question: str = "q",
    *,
    entropy: float | None = None,
) -> Trajectory:
    """Return a rollout whose parts alternate between turns of the policy and observations.

    Args:
        parts: turns as (id, probability) pairs, observations as ids.
        reward: the verified outcome.
        rollout: index in its group.
        question: id of the question.
        entropy: of every sampled token, in nats; None: the engine was not asked for entropies.
    """
    segments = []
    for i, part in enumerate(parts):
        if i % 2:
            segments.append(ObservationSegment(np.array(part, np.int32)))
        else:
            segments.append(_policy(part, entropy))
    return Trajectory(
        question,
        rollout,
        np.array([1], np.int32),
        tuple(segments),
        EndReason.ANSWERED,
        None,
        reward,
    )


def group(question: str, *rollouts: Trajectory, worker: int = 0) -> Group:
    return Group(Question(question, "", (), ""), rollouts, worker)


def found_in(
    question: Group,
    ranking: Ranking = Confidence(),
    fork_at: ForkPlace = FirstCall(),
    *,
    seed: int = 0,
    batch: int = 0,
    place: int = 0,
) -> list[Candidate]:
    """Return the candidates of a group."""
    return candidates(question, Rules(TOKENS, fork_at, ranking, seed), batch=batch, place=place)


def scored(place: int, *scores: float, tool: str = "") -> list[Candidate]:
    """Return candidates of a question with these scores, of rollouts 0, 1 and so on."""
    found = [Candidate(place, rollout, 1, score, tool) for rollout, score in enumerate(scores)]
    return in_depth(found)


def _policy(sampled: Sequence[Sampled], entropy: float | None) -> PolicySegment:
    ids, probabilities = zip(*sampled, strict=True)
    entropies = None if entropy is None else np.full(len(ids), entropy, np.float32)
    logprobs = np.log(np.array(probabilities, np.float32))
    return PolicySegment(np.array(ids, np.int32), logprobs, 0, entropies)
