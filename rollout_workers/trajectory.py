"""The one contract between the rooms: questions, trajectories and groups, as token ids from start to end.

A trajectory stores what was sampled and what was observed, once. Loss masks, tool-call spans, fork points and
diagnostics are derived from it here. Positions are *response coordinates*: index 0 is the first token after the
prompt, and policy and observation tokens share one axis (R tokens). An image is one `<|image_pad|>` token on this
axis; engine and learner expand it to the image's own number of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int32]
Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]
"""RGB, [height, width, 3]."""
Span: TypeAlias = tuple[int, int]
"""[start, stop) in response coordinates."""
BAN_BIAS = -100.0
"""Added to the logits of `SpecialTokens.banned`, by the engine when it samples and by the learner."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids read from the tokenizer, never hard-coded."""

    im_start: int
    im_end: int
    think_close: int
    call_open: int
    call_close: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int

    @property
    def banned(self) -> tuple[int, ...]:
        """Vision placeholders: one sampled by the policy would break the count of image features."""
        return (self.vision_start, self.vision_end, self.image_pad, self.video_pad)


class EndReason(StrEnum):
    """Why a rollout ended. Every dispatched rollout ends in exactly one of these."""

    ANSWERED = "answered"  # a turn without a tool call, closed by the policy
    OUT_OF_TURNS = "out_of_turns"  # the last allowed turn asked for a tool
    OUT_OF_TOKENS = "out_of_tokens"  # a turn or the context reached its limit
    MALFORMED_CALL = "malformed_call"  # the last allowed turn held only unreadable tool calls
    TOOL_ERROR = "tool_error"  # the tool server failed: infrastructure
    DEADLINE = "deadline"  # the rollout's deadline passed: infrastructure
    ENGINE_FAILURE = "engine_failure"  # the engine failed: infrastructure
    VERIFIER_FAILURE = "verifier_failure"  # the verifier raised, took too long or gave no finite number: infrastructure

    @property
    def infrastructure(self) -> bool:
        """True where the policy is not at fault: such a rollout has no reward and is never trained on."""
        return self in (
            EndReason.TOOL_ERROR,
            EndReason.DEADLINE,
            EndReason.ENGINE_FAILURE,
            EndReason.VERIFIER_FAILURE,
        )


@dataclass(frozen=True)
class Question:
    """One task item. `images` hold pixels or Ray object references to pixels (one copy a question, see `pixels`)."""

    id: str
    text: str
    images: tuple[Any, ...]
    answer: str
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySegment:
    """Tokens that the policy sampled, with the log-probabilities they were sampled with (temperature and bans included)."""

    token_ids: Ids  # [T]
    logprobs: Floats  # [T]
    policy_version: int
    entropies: Floats | None = (
        None  # [T], nats, from top-k logprobs; only where the ranking asks for it
    )


@dataclass(frozen=True)
class ObservationSegment:
    """Tokens that the environment wrote: template, tool results. Never trained on."""

    token_ids: Ids  # [T]
    images: tuple[Pixels, ...] = ()  # in the order of their <|image_pad|> tokens


Segment: TypeAlias = PolicySegment | ObservationSegment


@dataclass(frozen=True)
class ForkPoint:
    """Where a resample leaves its source: the first `prefix_tokens` response tokens are the source's own."""

    source: int  # rollout index of the source in its group
    index: int  # k of K
    prefix_tokens: (
        int  # response tokens that are the source's; those of AXPO end with an opening <tool_call>
    )


@dataclass(frozen=True)
class RolloutStats:
    """Seconds and counts of one rollout; diagnostics only."""

    started: float = 0.0  # seconds since the epoch, by the worker's clock
    seconds: float = 0.0
    tool_seconds: float = 0.0
    engine_seconds: float = 0.0
    tool_spans: tuple[
        tuple[float, float], ...
    ] = ()  # of each wait for tools, seconds since the start
    prompt_tokens: int = 0  # of the first request, images expanded
    cached_tokens: int = 0  # of these, served from the prefix cache
    later_prompt_tokens: int = 0  # of all further requests
    later_cached_tokens: int = 0
    tool_calls: int = 0
    tool_failures: int = 0  # calls answered with an error that is the policy's fault
    tools: tuple[str, ...] = ()  # those that its calls reached, one each
    fault: str = ""  # of a verifier that failed: why


@dataclass(frozen=True)
class Trajectory:
    question_id: str
    rollout: int  # index in its group; a fork carries its source's
    prompt_ids: Ids  # [P], one <|image_pad|> per question image
    segments: tuple[Segment, ...]
    end: EndReason
    answer: str | None = None
    reward: float | None = None  # None: infrastructure failure, not scored
    fork: ForkPoint | None = None
    stats: RolloutStats = RolloutStats()

    @cached_property
    def response_ids(self) -> Ids:
        """[R] policy and observation tokens in order."""
        return _concat([s.token_ids for s in self.segments], np.int32)

    @cached_property
    def logprobs(self) -> Floats:
        """[R] as sampled; 0 on observations."""
        return _concat(
            [
                s.logprobs if isinstance(s, PolicySegment) else np.zeros(len(s.token_ids))
                for s in self.segments
            ],
            np.float32,
        )

    @cached_property
    def entropies(self) -> Floats | None:
        """[R] nats, 0 on observations; None where the engine was not asked for them."""
        parts: list[NDArray[Any]] = []
        for s in self.segments:
            if isinstance(s, ObservationSegment):
                parts.append(np.zeros(len(s.token_ids)))
            elif s.entropies is None:
                return None
            else:
                parts.append(s.entropies)
        return _concat(parts, np.float32)

    @cached_property
    def policy_mask(self) -> NDArray[np.bool_]:
        """[R] True on tokens the policy sampled."""
        return _concat(
            [np.full(len(s.token_ids), isinstance(s, PolicySegment)) for s in self.segments],
            np.bool_,
        )

    @property
    def images(self) -> tuple[Pixels, ...]:
        """Images of observations, in order of appearance (the question's own images are not here)."""
        return tuple(
            image for s in self.segments if isinstance(s, ObservationSegment) for image in s.images
        )

    @property
    def policy_tokens(self) -> int:
        """Tokens this rollout generated itself (a fork's prefix is its source's)."""
        return int(self.policy_mask.sum()) - (
            int(self.policy_mask[: self.fork.prefix_tokens].sum()) if self.fork else 0
        )


@dataclass(frozen=True)
class Resample:
    """One selected source prefix and its K continuations."""

    source: int  # rollout index
    prefix_tokens: int
    continuations: tuple[Trajectory, ...]


@dataclass(frozen=True)
class Group:
    """The N rollouts of one question, and the resamples of its selected prefixes."""

    question: Question
    rollouts: tuple[Trajectory, ...]
    worker: int  # the rollout worker whose engine holds the prefixes
    resamples: tuple[Resample, ...] = ()

    @property
    def rewards(self) -> NDArray[np.float64]:
        """[N]; raises if a rollout has none (such groups are dropped before they get here)."""
        return rewards_of(self.rollouts)


def rewards_of(trajectories: Sequence[Trajectory]) -> NDArray[np.float64]:
    """The verified outcome of each; raises ValueError if one has none."""
    return np.array([_reward(t) for t in trajectories], dtype=np.float64)


def turns(trajectory: Trajectory) -> list[Span]:
    """The policy's turns: maximal runs of policy tokens (a fork's prefix and continuation are one turn)."""
    edges = np.flatnonzero(
        np.diff(np.concatenate([[0], trajectory.policy_mask.astype(np.int8), [0]]))
    )
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def tool_call_spans(trajectory: Trajectory, tokens: SpecialTokens) -> list[Span]:
    """Whole serialized tool calls, both tags included, in order.

    Only after a turn's `</think>`: a literal `<tool_call>` inside thinking is no call (docs/method.md, rule 2). A call that
    is never closed runs to the end of its turn without its end-of-turn token; it is an attempt, so it counts as tool use (our reading).
    """
    return [
        span
        for start, stop in turns(trajectory)
        for span in call_spans_in_turn(trajectory.response_ids[start:stop], tokens, start)
    ]


def call_spans_in_turn(
    ids: Sequence[int] | Ids, tokens: SpecialTokens, offset: int = 0
) -> list[Span]:
    """The tool-call spans of one turn's token ids, shifted by `offset`."""
    ids = np.asarray(ids)
    closes = np.flatnonzero(ids == tokens.think_close)
    if len(closes) == 0:
        return []
    stop = len(ids) - 1 if len(ids) and ids[-1] == tokens.im_end else len(ids)
    spans: list[Span] = []
    position = int(closes[0]) + 1
    while True:
        opens = np.flatnonzero(ids[position:stop] == tokens.call_open)
        if len(opens) == 0:
            return spans
        start = position + int(opens[0])
        ends = np.flatnonzero(ids[start:stop] == tokens.call_close)
        end = start + int(ends[0]) + 1 if len(ends) else stop
        spans.append((start + offset, end + offset))
        position = end


def uses_tools(trajectory: Trajectory, tokens: SpecialTokens) -> bool:
    """True where the policy opened at least one tool call: membership in T, the tool-using subgroup."""
    return bool(tool_call_spans(trajectory, tokens))


def frozen_prefix(source: Trajectory, prefix_tokens: int) -> tuple[Segment, ...]:
    """Return the prefix of a source that its continuations keep: rule 4 of docs/method.md.

    A continuation starts from the source's own tokens, with the log-probabilities and the policy
    versions that they were sampled with. The last segment is cut if the prefix ends inside it.

    Args:
        source: the rollout that is forked.
        prefix_tokens: length of the prefix in response tokens, from 0 to R.

    Raises:
        ValueError: if the prefix ends inside an observation, or not within the response.
    """
    kept: list[Segment] = []
    left = prefix_tokens
    for segment in source.segments:
        if left <= 0:
            break
        if left < len(segment.token_ids):
            if isinstance(segment, ObservationSegment):
                break
            segment = _cut(segment, left)
        kept.append(segment)
        left -= len(segment.token_ids)
    if left != 0:
        raise ValueError(
            f"a prefix of {prefix_tokens} tokens does not end where the policy can go on"
        )
    return tuple(kept)


def _cut(segment: PolicySegment, length: int) -> PolicySegment:
    entropies = None if segment.entropies is None else segment.entropies[:length]
    return PolicySegment(
        segment.token_ids[:length], segment.logprobs[:length], segment.policy_version, entropies
    )


def recovered(group: Group, resample: Resample) -> bool:
    """True where the best continuation of a prefix did better than the source did."""
    source = next(t for t in group.rollouts if t.rollout == resample.source)
    return bool(rewards_of(resample.continuations).max() > _reward(source))


def pixels(image: Any) -> Pixels:
    """The pixels behind an image of a question: itself, or fetched from Ray's object store (blocking)."""
    if isinstance(image, np.ndarray):
        return image
    import ray

    return ray.get(image, timeout=60)


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id} ended in {trajectory.end} and has no reward"
        )
    return trajectory.reward


def _concat(parts: Sequence[Any], dtype: Any) -> NDArray[Any]:
    return (
        np.concatenate([np.asarray(p, dtype=dtype) for p in parts])
        if parts
        else np.zeros(0, dtype=dtype)
    )


def stored(question: Question) -> Question:
    """The question with its images in Ray's object store: one copy, however many rollouts and forks read it."""
    import ray

    return replace(question, images=tuple(ray.put(image) for image in question.images))
