"""Groups written by hand: token ids with the probability each was sampled with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout_workers.trajectory import (
    EndReason,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Trajectory,
)


def direct(reward: float, rollout: int = 0, question: str = "q") -> Trajectory:
    """Thinking and an answer, no call."""
    return turns([[(50, 0.9), (4, 0.9), (51, 0.9), (2, 0.9)]], reward, rollout, question)


def calling(
    p: float,
    reward: float = 0.0,
    rollout: int = 0,
    question: str = "q",
    *,
    entropy: float | None = None,
) -> Trajectory:
    """Thinking, a call of three tokens sampled with probability `p` each, an observation, an answer. The fork prefix is 3 tokens."""
    call = [(50, 0.1), (4, 0.1), (5, p), (60, p), (6, p), (2, 0.1)]
    return turns(
        [call, [70, 71], [(4, 0.9), (51, 0.9), (2, 0.9)]], reward, rollout, question, entropy
    )


def turns(
    parts: Sequence[Sequence],
    reward: float,
    rollout: int = 0,
    question: str = "q",
    entropy: float | None = None,
) -> Trajectory:
    """`parts` alternate between policy turns, as (id, probability), and observations, as ids."""
    segments = []
    for i, part in enumerate(parts):
        if i % 2:
            segments.append(ObservationSegment(np.array(part, np.int32)))
        else:
            ids, ps = zip(*part, strict=True)
            entropies = None if entropy is None else np.full(len(ids), entropy, np.float32)
            segments.append(
                PolicySegment(
                    np.array(ids, np.int32), np.log(np.array(ps, np.float32)), 0, entropies
                )
            )
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
