"""The multi-turn loop of one rollout: generate, call tools, observe, until exactly one typed end.

It knows an engine and tools by their protocols only. A fork is the same loop with segments to
start from and a first turn that is already generated; nothing else in the loop knows about forks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rollout_workers.chat import Chat, Observed, images_of, in_chat_thread
from rollout_workers.cutting import cut
from rollout_workers.deadline import Deadline
from rollout_workers.interfaces import (
    Called,
    CallTool,
    ContextFull,
    EngineFailure,
    Generate,
    Generation,
    Sampling,
    ToolAnswer,
)
from rollout_workers.parser import BadCall, Call, Turn, parse_turn
from rollout_workers.pictures import Pictures
from rollout_workers.segments import (
    earlier_calls,
    last_turn,
    observed_images,
    runnable_calls,
    turn_index,
)
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Ids,
    ObservationSegment,
    Pixels,
    PolicySegment,
    Question,
    RolloutStats,
    Segment,
    Trajectory,
    UnusableQuestion,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one attempt of a rollout may use, and how many more attempts there are."""

    max_turns: int
    max_turn_tokens: int
    max_calls_per_turn: int
    deadline_s: float
    max_tool_tokens: int = 4096
    retries: int = 0  # after an infrastructure failure


@dataclass(frozen=True)
class Response:
    """What a rollout produced, not yet scored."""

    segments: tuple[Segment, ...]
    end: EndReason
    answer: str | None
    stats: RolloutStats


@dataclass(frozen=True)
class Scene:
    """What the rollouts of one question share."""

    chat: Chat
    generate: Generate
    call_tool: CallTool
    limits: Limits
    question: Question
    prompt_ids: Ids  # [P]
    pictures: Pictures  # what its rollouts show the engine
    temperature: float

    def trajectory(self, response: Response, rollout: int, fork: ForkPoint | None) -> Trajectory:
        """Return the trajectory of a response, not yet scored.

        Args:
            response: what the rollout or continuation produced.
            rollout: its index in the group, or the index of its source.
            fork: where it leaves its source; None for a rollout.
        """
        return Trajectory(
            question_id=self.question.id,
            rollout=rollout,
            prompt_ids=self.prompt_ids,
            segments=response.segments,
            end=response.end,
            answer=response.answer,
            fork=fork,
            stats=response.stats,
        )


@dataclass(frozen=True)
class Unavailable:
    """The answer of a tool that is out of service."""

    name: str
    status: str = "unavailable"
    tool: str = ""
    left_nothing: bool = True
    seconds: float = 0.0
    images: tuple[Pixels, ...] = ()

    @property
    def text(self) -> str:
        """What the policy reads."""
        return f"{self.name} is unavailable at present."


@dataclass(frozen=True)
class _Message:
    """A tool response that the loop itself writes."""

    text: str
    images: tuple[Pixels, ...] = ()


@dataclass
class _Tally:
    """Seconds and counts of a rollout in the making."""

    begun: float
    engine_seconds: float = 0.0
    tool_spans: list[tuple[float, float]] = field(default_factory=list)
    tool_calls: int = 0
    tool_failures: int = 0
    tools: list[str] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)

    def stats(self) -> RolloutStats:
        seconds = time.monotonic() - self.begun
        first, later = self.generations[:1], self.generations[1:]
        with_tokens = [g for g in self.generations if len(g.token_ids)]
        return RolloutStats(
            started=time.time() - seconds,
            seconds=seconds,
            tool_seconds=sum(stop - start for start, stop in self.tool_spans),
            engine_seconds=self.engine_seconds,
            tool_spans=tuple(self.tool_spans),
            prompt_tokens=sum(g.prompt_tokens for g in first),
            cached_tokens=sum(g.cached_tokens for g in first),
            later_prompt_tokens=sum(g.prompt_tokens for g in later),
            later_cached_tokens=sum(g.cached_tokens for g in later),
            last_prompt_tokens=sum(g.prompt_tokens for g in with_tokens[-1:]),
            tool_calls=self.tool_calls,
            tool_failures=self.tool_failures,
            tools=tuple(self.tools),
        )


class Rollout:
    """One rollout in the making; `play` runs it to its end, once."""

    def __init__(
        self,
        scene: Scene,
        seed: Callable[[int, int], int],
        segments: Sequence[Segment] = (),
        begun: float | None = None,
    ) -> None:
        """Prepare a rollout.

        Args:
            scene: what it shares with the other rollouts of its question.
            seed: gives the seed of a request from the turn and the part of the turn.
            segments: what it starts from; the prefix of a fork.
            begun: when it began, by `time.monotonic`; now if None.
        """
        self.segments = list(segments)
        self._scene = scene
        self._seed = seed
        self._tally = _Tally(time.monotonic() if begun is None else begun)
        # The calls, by their place among all that were run, that left nothing behind in a tool.
        # A fork does not know of its prefix's: a tool with state finds out again.
        self._left_nothing: set[int] = set()
        self._deadline: Deadline

    async def play(self, first: Generation | None = None) -> Response:
        """Run turns until an end; `first` continues the segments if it was sampled already.

        Raises:
            UnusableQuestion: the question alone fills the context.
        """
        answer: str | None = None
        try:
            async with Deadline(self._scene.limits.deadline_s) as self._deadline:
                end, answer = await self._turns(first)
        except TimeoutError:
            end = EndReason.DEADLINE
        except EngineFailure as failure:
            logger.warning("engine failure: %s", failure)
            end = EndReason.ENGINE_FAILURE
        except ContextFull as error:
            # Nothing was sampled yet, so it is not the policy that filled the context.
            if not self.segments:
                raise UnusableQuestion(f"question {self._scene.question.id}: {error}") from error
            end = EndReason.OUT_OF_TOKENS
        return Response(tuple(self.segments), end, answer, self._tally.stats())

    async def _turns(self, first: Generation | None) -> tuple[EndReason, str | None]:
        """Run turns until one ends the rollout; return how it ended, and the answer if any."""
        max_turns = self._scene.limits.max_turns
        for turn in range(turn_index(self.segments), max_turns):
            if not await self._sample_turn(turn, first):
                return EndReason.OUT_OF_TOKENS, None
            first = None
            # Parsing takes milliseconds; the event loop must not wait for it.
            parsed, earlier = await in_chat_thread(self._read)
            if not parsed.calls:
                return EndReason.ANSWERED, parsed.answer_text
            # The policy could not read an answer any more, so the tool is not called.
            if turn + 1 == max_turns:
                unreadable = all(isinstance(call, BadCall) for call in parsed.calls)
                return (EndReason.MALFORMED_CALL if unreadable else EndReason.OUT_OF_TURNS), None
            results = await self._answer(parsed.calls, earlier)
            if results is None:
                return EndReason.TOOL_ERROR, None
            if self._deadline.calls_used_up:
                return EndReason.OUT_OF_TURNS, None
            await self._observe(results)
        raise ValueError(f"no turn left of {max_turns}: nothing to sample")

    async def _sample_turn(self, turn: int, first: Generation | None) -> bool:
        """Sample a turn to its end; return False if a limit ended it.

        A weight update may cut the turn: the next policy goes on with it, in a segment of its own.
        """
        left = self._scene.limits.max_turn_tokens
        for part in itertools.count():
            generation = first or await self._sample(turn, part, left)
            first = None
            self._tally.generations.append(generation)
            # A cut before the first token leaves nothing to keep.
            if len(generation.token_ids):
                self.segments.append(_segment(generation))
            left -= len(generation.token_ids)
            if not generation.cut or left <= 0:
                return generation.finished
        raise AssertionError

    async def _sample(self, turn: int, part: int, max_tokens: int) -> Generation:
        started = time.monotonic()
        scene = self._scene
        # Ids are never rendered again: every request extends the one before token by token.
        ids = np.concatenate([scene.prompt_ids, *[s.token_ids for s in self.segments]])
        images = await scene.pictures.shown(observed_images(self.segments))
        sampling = Sampling(self._seed(turn, part), max_tokens, temperature=scene.temperature)
        (generation,) = await scene.generate(ids, images, sampling)
        self._tally.engine_seconds += time.monotonic() - started
        return generation

    def _read(self) -> tuple[Turn, list[Called]]:
        """Return the turn just closed, and the calls of the turns before it if it has calls."""
        scene = self._scene
        parsed = parse_turn(last_turn(self.segments), scene.chat.tokens, scene.chat.decode)
        if not parsed.calls:
            return parsed, []
        limit = scene.limits.max_calls_per_turn
        images = len(scene.question.images)
        return parsed, earlier_calls(self.segments, scene.chat, limit, images)

    async def _answer(
        self, calls: Sequence[Call | BadCall], earlier: Sequence[Called]
    ) -> list[Observed] | None:
        """Return one result per block of calls, in order; None if the tool server failed."""
        limit = self._scene.limits.max_calls_per_turn
        ran = await self._run(runnable_calls(calls, limit), earlier)
        if ran is None:
            return None
        for place, result in enumerate(ran, start=len(earlier)):
            if result.left_nothing:
                self._left_nothing.add(place)
        self._tally.tool_calls += len(calls)
        self._tally.tools += [result.tool for result in ran if result.tool]
        # The whole rollout is run again, with the same seeds.
        if any(result.status in ("infrastructure", "deadline") for result in ran):
            return None
        # Calls that were not run, unreadable or over the limit, are failures too.
        blameless = sum(result.status in ("ok", "unavailable") for result in ran)
        self._tally.tool_failures += len(calls) - blameless
        plural = "s" if limit > 1 else ""
        over_limit = _Message(f"not run: at most {limit} tool call{plural} a turn")
        answers = iter(ran)
        results: list[Observed] = []
        for call in calls:
            if isinstance(call, BadCall):
                results.append(_Message(call.message))
            else:
                results.append(next(answers, over_limit))
        return results

    async def _run(
        self, calls: Sequence[Call], earlier: Sequence[Called]
    ) -> list[ToolAnswer] | None:
        """Run the calls of one turn side by side; return None if the tool server raised."""
        observed = await self._scene.pictures.pixels(observed_images(self.segments))
        # Tools get the question's images as they are: pixels or object references.
        images = [*self._scene.question.images, *observed]
        called = [(call.name, call.arguments, len(images)) for call in calls]
        told = [call for place, call in enumerate(earlier) if place not in self._left_nothing]
        calling = [
            # A tool with state must find it as if the calls had run in order: each is told the
            # calls of the same turn before it.
            self._scene.call_tool(call.name, call.arguments, images, (*told, *called[:place]))
            for place, call in enumerate(calls)
        ]
        started = time.monotonic()
        ran: list[float] = []
        try:
            with self._deadline.calling(ran):
                results = await asyncio.gather(*calling)
                ran += [result.seconds for result in results]
            return results
        except Exception:  # whatever the tool server died of, it is not the policy's fault
            logger.exception("the tool server failed")
            return None
        finally:
            begun = self._tally.begun
            self._tally.tool_spans.append((started - begun, time.monotonic() - begun))

    async def _observe(self, results: Sequence[Observed]) -> None:
        """Append what the environment answers to a turn."""
        ids = await in_chat_thread(self._observation, results)
        self.segments.append(ObservationSegment(ids, images_of(results)))

    def _observation(self, results: Sequence[Observed]) -> Ids:
        chat, limit = self._scene.chat, self._scene.limits.max_tool_tokens
        texts = [(cut(result.text, limit, chat.plain), len(result.images)) for result in results]
        return chat.observation(texts)


def _segment(generation: Generation) -> PolicySegment:
    return PolicySegment(
        generation.token_ids,
        generation.logprobs,
        generation.policy_version,
        generation.entropies,
    )
