"""Engines that only wait, and the trajectories that they answer with.

What is around them is real: flow, pool, resampler and Ray. How long a group takes is drawn from a
log-normal. So what is measured is what the driver and the resampler do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import ray

from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    RolloutStats,
    Segment,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
)

N = 8
TOKENS = SpecialTokens(*range(9))
TURN_TOKENS = 48
RIGHT = 0.3
"""Share of right rollouts."""
STOCK = 64
"""Responses that engines draw from: making one anew takes longer than all that is measured."""
ANSWER_S = 60.0
"""Deadline for a process to tell its CPU time."""


@dataclass(frozen=True)
class Fit:
    """A log-normal distribution of seconds."""

    mu: float
    sigma: float

    @classmethod
    def of(cls, durations: Sequence[float]) -> Fit:
        """Return the distribution that fits some durations."""
        logs = np.log(durations)
        return cls(float(logs.mean()), float(logs.std()))

    def seconds(self, question: str, step: int) -> float:
        """Return how long the group of a question takes."""
        return float(np.random.default_rng([int(question), step, 1]).lognormal(self.mu, self.sigma))


class WaitingWorker:
    """A rollout worker that waits as long as a group takes.

    It answers with trajectories of the usual size.
    """

    def __init__(self, index: int, settings: WorkerSettings) -> None:
        # The place of the tools holds the distribution: the pool hands it on unread.
        fit: Any = settings.tools
        self.index, self.fit = index, fit
        # Groups that are generated at once; others wait here, as in a real worker.
        self.room = asyncio.Semaphore(settings.config.concurrency // settings.config.n)

    async def ready(self) -> SpecialTokens:
        """Return at once."""
        return TOKENS

    async def ping(self) -> None:
        """Give a sign of life."""

    async def rollout(
        self,
        question: Question,
        n: int,
        step: int,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Group:
        """Wait as long as the group takes."""
        async with self.room:
            await asyncio.sleep(self.fit.seconds(question.id, step))
        rng = np.random.default_rng([int(question.id), step])
        right = rng.uniform(size=n) < RIGHT
        chosen = rng.integers(0, STOCK, n)
        rollouts = [
            _trajectory(question, i, float(right[i]), _stock()[chosen[i]]) for i in range(n)
        ]
        return Group(question, tuple(rollouts), self.index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        """Wait half as long as a group takes; the first continuation is right."""
        await asyncio.sleep(self.fit.seconds(question.id, step) / 2)
        prefix = frozen_prefix(source, request.prefix_tokens)
        continuations = []
        for k in range(request.k):
            point = ForkPoint(source.rollout, k, request.prefix_tokens)
            segments = (*prefix, *_stock()[k])
            made = _trajectory(question, source.rollout, float(k == 0), segments, point)
            continuations.append(made)
        return Resample(source.rollout, request.prefix_tokens, tuple(continuations))

    async def shutdown(self) -> None:
        """Have nothing to end."""


class CountedTask:
    """A task whose questions are numbers."""

    def train(self, index: int) -> Question:
        """Return a question."""
        return Question(str(index), "?", (), "7")


def never_asked(question: Question, answer: str | None) -> float:
    """Verify nothing: the engines score their own rollouts."""
    return 0.0


def cpu_seconds(actor: Any) -> float:
    """Return the CPU time of an actor's process."""
    reference = actor.__ray_call__.remote(_process_time)
    seconds: float = ray.get(reference, timeout=ANSWER_S)
    return seconds


def _process_time(_: object) -> float:
    import time

    return time.process_time()


@cache
def _stock() -> list[tuple[Segment, ...]]:
    rng = np.random.default_rng(0)
    return [_segments(rng) for _ in range(STOCK)]


def _segments(rng: np.random.Generator) -> tuple[Segment, ...]:
    """Return a turn that calls, its observation, and a turn that answers."""
    call = _ids(rng)
    assert TOKENS.think_close is not None
    call[8], call[16], call[40] = TOKENS.think_close, TOKENS.call_open, TOKENS.call_close
    first = PolicySegment(call, _logprobs(rng), 0)
    crop = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    last = PolicySegment(_ids(rng), _logprobs(rng), 0)
    return first, ObservationSegment(call, (crop,)), last


def _ids(rng: np.random.Generator) -> Ids:
    return rng.integers(20, 300, TURN_TOKENS).astype(np.int32)


def _logprobs(rng: np.random.Generator) -> np.ndarray:
    return -rng.uniform(size=TURN_TOKENS).astype(np.float32)


def _trajectory(
    question: Question,
    rollout: int,
    reward: float,
    segments: tuple[Segment, ...],
    fork: ForkPoint | None = None,
) -> Trajectory:
    return Trajectory(
        question_id=question.id,
        rollout=rollout,
        prompt_ids=segments[0].token_ids,
        segments=segments,
        end=EndReason.ANSWERED,
        answer="7",
        reward=reward,
        fork=fork,
        stats=RolloutStats(seconds=1.0),
    )
