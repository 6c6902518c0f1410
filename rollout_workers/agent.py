"""The multi-turn loop of one rollout, against protocols: generate, call tools, observe, until exactly one typed end.

A fork is the same loop with segments to start from and a first turn that is already generated; nothing in it knows about forks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollout_workers.chat import Chat, Observed, in_chat_thread
from rollout_workers.interfaces import (
    Called,
    CallTool,
    ContextFull,
    EngineFailure,
    Generate,
    Generation,
    Sampling,
)
from rollout_workers.parser import BadCall, Call, Turn, parse_turn
from rollout_workers.trajectory import (
    EndReason,
    Ids,
    ObservationSegment,
    Pixels,
    PolicySegment,
    RolloutStats,
    Segment,
    SpecialTokens,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    max_turns: int
    max_turn_tokens: int
    max_calls_per_turn: int
    deadline_s: float


@dataclass(frozen=True)
class Response:
    """What a rollout produced, not yet scored."""

    segments: tuple[Segment, ...]
    end: EndReason
    answer: str | None
    stats: RolloutStats


@dataclass(frozen=True)
class _Message:
    """A tool response written by the loop itself."""

    text: str
    images: tuple[Pixels, ...] = ()


@dataclass(frozen=True)
class Unavailable:
    """The answer of a tool that is out of service."""

    name: str
    status: str = "unavailable"
    tool: str = ""
    images: tuple[Pixels, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.name} is unavailable at present."


@dataclass
class Rollout:
    """One rollout in the making; `play` runs it to its end. An object is played once."""

    chat: Chat
    generate: Generate
    call_tool: CallTool
    limits: Limits
    prompt_ids: Ids
    question_images: Sequence[Pixels]
    tool_images: Sequence[
        Any
    ]  # the question's images as tools get them: pixels or object references
    seed: Callable[[int, int], int]  # turn, part of the turn -> seed
    temperature: float
    segments: list[Segment] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    _engine_seconds: float = 0.0
    _tool_spans: list[tuple[float, float]] = field(default_factory=list)
    _tool_calls: int = 0
    _tool_failures: int = 0
    _tools: list[str] = field(default_factory=list)
    _generations: list[Generation] = field(default_factory=list)

    async def play(self, first: Generation | None = None) -> Response:
        """Run turns until an end. `first` is the continuation of `segments` where that was sampled already."""
        answer: str | None = None
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                end, answer = await self._turns(first)
        except TimeoutError:
            end = EndReason.DEADLINE
        except EngineFailure as failure:
            log.warning("engine failure: %s", failure)
            end = EndReason.ENGINE_FAILURE
        except ContextFull:
            end = EndReason.OUT_OF_TOKENS
        return Response(tuple(self.segments), end, answer, self._stats())

    async def _turns(self, first: Generation | None) -> tuple[EndReason, str | None]:
        for turn in range(turn_index(self.segments), self.limits.max_turns):
            if not await self._turn(turn, first):
                return EndReason.OUT_OF_TOKENS, None
            first = None
            parsed, earlier = await in_chat_thread(self._read)
            if not parsed.calls:
                return EndReason.ANSWERED, parsed.answer_text
            if turn + 1 == self.limits.max_turns:
                unreadable = all(isinstance(call, BadCall) for call in parsed.calls)
                return (EndReason.MALFORMED_CALL if unreadable else EndReason.OUT_OF_TURNS), None
            results = await self._answer(parsed.calls, earlier)
            if results is None:
                return EndReason.TOOL_ERROR, None
            ids = await in_chat_thread(
                self.chat.observation, [(result.text, len(result.images)) for result in results]
            )
            self.segments.append(
                ObservationSegment(
                    ids, tuple(image for result in results for image in result.images)
                )
            )
        raise ValueError(f"no turn left of {self.limits.max_turns}: nothing to sample")

    async def _turn(self, turn: int, first: Generation | None) -> bool:
        """Sample a turn to its end, over weight updates that cut it; False where a limit ended it."""
        left = self.limits.max_turn_tokens
        for part in itertools.count():
            generation = first or await self._sample(turn, part, left)
            first = None
            self._generations.append(generation)
            if len(generation.token_ids):
                self.segments.append(
                    PolicySegment(
                        generation.token_ids,
                        generation.logprobs,
                        generation.policy_version,
                        generation.entropies,
                    )
                )
            left -= len(generation.token_ids)
            if not generation.cut or left <= 0:
                return generation.finished
        raise AssertionError

    async def _sample(self, turn: int, part: int, max_tokens: int) -> Generation:
        started = time.monotonic()
        ids = np.concatenate([self.prompt_ids, *[s.token_ids for s in self.segments]])
        images = [*self.question_images, *observed_images(self.segments)]
        sampling = Sampling(self.seed(turn, part), max_tokens, temperature=self.temperature)
        (generation,) = await self.generate(ids, images, sampling)
        self._engine_seconds += time.monotonic() - started
        return generation

    def _read(self) -> tuple[Turn, list[Called]]:
        """The turn just closed, and the calls of the turns before it."""
        parsed = parse_turn(_open_turn(self.segments), self.chat.tokens, self.chat.decode)
        return parsed, earlier_calls(
            self.segments, self.chat, self.limits.max_calls_per_turn, len(self.tool_images)
        ) if parsed.calls else []

    def _stats(self) -> RolloutStats:
        seconds = time.monotonic() - self.begun
        first, later = self._generations[:1], self._generations[1:]
        return RolloutStats(
            started=time.time() - seconds,
            seconds=seconds,
            tool_seconds=sum(stop - start for start, stop in self._tool_spans),
            engine_seconds=self._engine_seconds,
            tool_spans=tuple(self._tool_spans),
            prompt_tokens=sum(g.prompt_tokens for g in first),
            cached_tokens=sum(g.cached_tokens for g in first),
            later_prompt_tokens=sum(g.prompt_tokens for g in later),
            later_cached_tokens=sum(g.cached_tokens for g in later),
            tool_calls=self._tool_calls,
            tool_failures=self._tool_failures,
            tools=tuple(self._tools),
        )

    async def _answer(
        self, calls: Sequence[Call | BadCall], earlier: Sequence[Called]
    ) -> list[Observed] | None:
        """One result per block, in order; None where the tool server failed."""
        limit = self.limits.max_calls_per_turn
        runnable = _run_of(calls, limit)
        images = [*self.tool_images, *observed_images(self.segments)]
        # Calls of one turn run side by side, and yet a tool with state must find it as if they had run in order.
        before = [
            (*earlier, *((c.name, c.arguments, len(images)) for c in runnable[:i]))
            for i in range(len(runnable))
        ]
        started = time.monotonic()
        try:
            ran = await asyncio.gather(
                *[
                    self.call_tool(c.name, c.arguments, images, b)
                    for c, b in zip(runnable, before, strict=True)
                ]
            )
        except Exception:  # whatever the tool server died of, it is not the policy's fault
            log.exception("the tool server failed")
            return None
        finally:
            self._tool_spans.append((started - self.begun, time.monotonic() - self.begun))
        self._tool_calls += len(calls)
        self._tools += [result.tool for result in ran if result.tool]
        if any(result.status in ("infrastructure", "deadline") for result in ran):
            return None
        self._tool_failures += len(calls) - sum(
            result.status in ("ok", "unavailable") for result in ran
        )
        answers = iter(ran)
        over = _Message(f"not run: at most {limit} tool call{'s' if limit > 1 else ''} a turn")
        left = len(runnable)
        results: list[Observed] = []
        for call in calls:
            if isinstance(call, BadCall):
                results.append(_Message(call.message))
            else:
                results.append(next(answers) if left > 0 else over)
                left -= 1
        return results


def earlier_calls(
    segments: Sequence[Segment], chat: Chat, max_calls_per_turn: int, images: int
) -> list[Called]:
    """The calls of every turn that was answered, in order: a function of the segments, so a fork has those of its prefix.

    `images` is the number of the question's.
    """
    called: list[Called] = []
    for index, segment in enumerate(segments):
        if isinstance(segment, ObservationSegment):
            turn = parse_turn(_open_turn(segments[:index]), chat.tokens, chat.decode)
            called += [
                (call.name, call.arguments, images)
                for call in _run_of(turn.calls, max_calls_per_turn)
            ]
            images += len(segment.images)
    return called


def observed_images(segments: Sequence[Segment]) -> list[Pixels]:
    """Images of the observations, in order."""
    return [image for s in segments if isinstance(s, ObservationSegment) for image in s.images]


def turn_index(segments: Sequence[Segment]) -> int:
    """The turn being written: the number of observations so far."""
    return sum(isinstance(s, ObservationSegment) for s in segments)


def distinct_calls(generations: Sequence[Generation], tokens: SpecialTokens) -> int:
    """How many different tool calls, token by token, continuations of an opening tag go on with; one cut short differs from all."""
    calls = []
    for place, generation in enumerate(generations):
        closes = np.flatnonzero(generation.token_ids == tokens.call_close)
        call = generation.token_ids[: closes[0] + 1] if len(closes) else generation.token_ids
        calls.append((call.tobytes(), place if generation.cut and not len(closes) else None))
    return len(set(calls))


def _run_of(calls: Sequence[Call | BadCall], max_calls_per_turn: int) -> list[Call]:
    """The calls of a turn that are run."""
    return [call for call in calls if isinstance(call, Call)][:max_calls_per_turn]


def _open_turn(segments: Sequence[Segment]) -> Ids:
    """Token ids of the last turn: the policy segments after the last observation."""
    parts: list[Ids] = []
    for segment in reversed(segments):
        if isinstance(segment, ObservationSegment):
            break
        parts.insert(0, segment.token_ids)
    return np.concatenate(parts)
