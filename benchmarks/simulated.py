"""An engine with idle slots, by simulation: what a GPU does while it decodes few sequences.

A round gives every running sequence one token. It takes ROUND_S, and a little more for each
sequence: with IDLE sequences it takes twice as long. So a few further sequences cost next to
nothing, as on a GPU whose weights are read once a round, whatever runs. Lengths, calls and outcomes
follow from seeds, as in `benchmarks.scripted`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import numpy as np

from benchmarks.scripted import ANSWER_DRAW, CALL_DRAW, log_normal
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

ROUND_S = 0.002
IDLE = 256
TOKENS = SpecialTokens(*range(9))
THINK_CLOSE = 2
MEAN, SIGMA, MOST = 64.0, 1.0, 768
"""Of the tokens of a thought: log-normal with this mean."""
CALL = 32
"""Tokens of a call."""
CALL_RATE, RIGHT = 0.5, 0.25
"""Shares of the rollouts that call, and that are right."""


class RoundEngine:
    """Give every running sequence a token a round. It belongs to one event loop."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Future[None], float] = {}  # rounds that a sequence still needs
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, tokens: int) -> None:
        """Return when a sequence of so many tokens is there."""
        # The constructor of an actor runs before its event loop.
        self._loop = self._loop or asyncio.create_task(self._rounds())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left[done] = float(tokens)
        self._changed.set()
        await done

    async def _rounds(self) -> None:
        while True:
            self._changed.clear()
            if not self._left:
                await self._changed.wait()
                continue
            round_s = ROUND_S * (1 + len(self._left) / IDLE)
            begun = time.monotonic()
            until_the_next_end = min(self._left.values()) * round_s
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), until_the_next_end)
            self._advance((time.monotonic() - begun) / round_s)

    def _advance(self, rounds: float) -> None:
        for sequence in list(self._left):
            self._left[sequence] -= rounds
            # The clock of the loop may wake a little early.
            if self._left[sequence] < 0.01:
                del self._left[sequence]
                sequence.set_result(None)


class SimulatedWorker:
    """A rollout worker on a `RoundEngine`, for `RolloutPool(actor_class=...)`."""

    def __init__(self, index: int, settings: WorkerSettings) -> None:
        self.index = index
        self.engine = RoundEngine()

    async def ready(self) -> SpecialTokens:
        """Return at once."""
        return TOKENS

    async def ping(self) -> None:
        """Give a sign of life."""

    async def rollout(self, question: Question, n: int, step: int, **_: Any) -> Group:
        """Make the rollouts of a question: one turn, or a call and a second turn."""
        rollouts = [self._rollout(question, index, step) for index in range(n)]
        return Group(question, tuple(await asyncio.gather(*rollouts)), self.index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        """Make the continuations of a prefix: the rest of the call, and a second turn."""
        continuations = [
            self._continuation(question, source, request, [step, source.rollout, k])
            for k in range(request.k)
        ]
        made = tuple(await asyncio.gather(*continuations))
        return Resample(source.rollout, request.prefix_tokens, made)

    async def shutdown(self) -> None:
        """Have nothing to end."""

    async def _rollout(self, question: Question, index: int, step: int) -> Trajectory:
        draw = [_number(question), step, index]
        calls = _uniform(draw, CALL_DRAW) < CALL_RATE
        thought = _turn(draw, _length(draw, 0))
        segments: list[Segment] = [thought]
        await self.engine.generate(len(thought.token_ids))
        if calls:
            segments += await self._after_thought(draw)
        return _trajectory(question, index, draw, tuple(segments))

    async def _continuation(
        self, question: Question, source: Trajectory, request: ForkRequest, draw: list[int]
    ) -> Trajectory:
        draw = [_number(question), *draw]
        prefix = frozen_prefix(source, request.prefix_tokens)
        rest = await self._after_thought(draw, opened=True)
        point = ForkPoint(source.rollout, draw[-1], request.prefix_tokens)
        return _trajectory(question, source.rollout, draw, (*prefix, *rest), point)

    async def _after_thought(self, draw: list[int], *, opened: bool = False) -> list[Segment]:
        """Return a call, what the tool said, and a turn that answers."""
        call = _turn(draw, CALL)
        call.token_ids[-1] = TOKENS.call_close
        if not opened:
            call.token_ids[:2] = THINK_CLOSE, TOKENS.call_open
        await self.engine.generate(CALL)
        answer = _turn(draw, _length(draw, 1))
        await self.engine.generate(len(answer.token_ids))
        observed = np.full(4, TOKENS.im_start, dtype=np.int32)
        return [call, ObservationSegment(observed, ()), answer]


def _number(question: Question) -> int:
    """Return the number at the end of a question's id."""
    return int(question.id.rsplit("-")[-1])


def _length(draw: list[int], turn: int) -> int:
    return int(np.clip(log_normal([*draw, turn], MEAN, SIGMA), 4, MOST))


def _uniform(draw: list[int], kind: int) -> float:
    return float(np.random.default_rng([*draw, kind, 9]).uniform())


def _turn(draw: list[int], length: int) -> PolicySegment:
    rng = np.random.default_rng([*draw, length])
    ids: Ids = rng.integers(20, 300, length).astype(np.int32)
    return PolicySegment(ids, -rng.uniform(size=length).astype(np.float32), 0)


def _trajectory(
    question: Question,
    rollout: int,
    draw: list[int],
    segments: tuple[Segment, ...],
    fork: ForkPoint | None = None,
) -> Trajectory:
    return Trajectory(
        question_id=question.id,
        rollout=rollout,
        prompt_ids=np.full(8, 20, dtype=np.int32),
        segments=segments,
        end=EndReason.ANSWERED,
        answer="7",
        reward=float(_uniform(draw, ANSWER_DRAW) < RIGHT),
        fork=fork,
        stats=RolloutStats(seconds=1.0),
    )
