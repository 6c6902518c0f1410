"""The one contract between the rooms: questions, trajectories and groups, as token ids.

A trajectory stores what was sampled and what was observed, once. Loss masks, tool-call spans and
diagnostics are derived from it; the derivations that several rooms need are here.

Positions are *response coordinates*: index 0 is the first token after the prompt, and policy and
observation tokens share one axis of R tokens. An image is one `<|image_pad|>` token on this axis;
engine and learner expand it to the image's own number of features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rollout_workers.images import FETCH_S, Pixels, StoredImage, ToolImage, fetched, image_size
from rollout_workers.joined import TravelsJoined
from rollout_workers.special_tokens import Ids, Span, SpecialTokens, read_turn

if TYPE_CHECKING:
    from ray import ObjectRef

Floats: TypeAlias = NDArray[np.float32]


class EndReason(StrEnum):
    """Why a rollout ended. Every dispatched rollout ends in exactly one of these."""

    ANSWERED = "answered"  # a turn without a tool call, closed by the policy
    OUT_OF_TURNS = "out_of_turns"  # the last allowed turn asked for a tool, or calls took all time
    OUT_OF_TOKENS = "out_of_tokens"  # a turn or the context reached its limit
    MALFORMED_CALL = "malformed_call"  # the last allowed turn held only unreadable tool calls
    # The others are infrastructure's fault.
    TOOL_ERROR = "tool_error"  # the tool server failed
    DEADLINE = "deadline"  # the rollout's deadline passed
    ENGINE_FAILURE = "engine_failure"  # the engine failed
    VERIFIER_FAILURE = "verifier_failure"  # it raised, took too long or gave no finite number

    @property
    def infrastructure(self) -> bool:
        """Whether the policy is not at fault: the rollout has no reward and is never trained on."""
        return self in (
            EndReason.TOOL_ERROR,
            EndReason.DEADLINE,
            EndReason.ENGINE_FAILURE,
            EndReason.VERIFIER_FAILURE,
        )


class UnusableQuestion(ValueError):
    """A question that cannot be asked: its data is at fault, not the policy and no machine.

    An image cannot be read, or images and text do not fit the context. The message is one line.
    """


@dataclass(frozen=True)
class LazyImage:
    """An image that is read when it is needed."""

    read: Callable[[], Pixels]
    """Gives the pixels; raises UnusableQuestion if it cannot. It may be called in any thread."""


QuestionImage: TypeAlias = "Pixels | LazyImage | ObjectRef[Pixels]"
"""An object reference of Ray is one copy for all rollouts and forks, see `stored`."""


@dataclass(frozen=True)
class Question:
    """One task item."""

    id: str
    text: str
    images: tuple[QuestionImage, ...]
    answer: str
    info: Mapping[str, Any] = field(default_factory=dict)
    # Of each image the character of the text before which it stands, in order; (): all images
    # stand before the text
    image_places: tuple[int, ...] = ()
    fault: str = ""  # why it cannot be asked; see `unusable`
    # Height and width in pixels of each image; (): whoever needs them has to look at the images
    image_sizes: tuple[tuple[int, int], ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Of each image the character of the text before which it stands."""
        return self.image_places or (0,) * len(self.images)

    @property
    def is_lazy(self) -> bool:
        """Whether an image is still to be read."""
        return any(isinstance(image, LazyImage) for image in self.images)


@dataclass(frozen=True)
class PolicySegment:
    """Tokens that the policy sampled, with the log-probabilities they were sampled with."""

    token_ids: Ids  # [T]
    logprobs: Floats  # [T], temperature and bans included
    policy_version: int
    # [T] nats, from top-k log-probabilities; None unless the resampler's ranking needs them
    entropies: Floats | None = None


@dataclass(frozen=True)
class ObservationSegment:
    """Tokens that the environment wrote: template, tool results. Never trained on."""

    token_ids: Ids  # [T]
    images: tuple[ToolImage, ...] = ()  # in the order of their <|image_pad|> tokens


Segment: TypeAlias = PolicySegment | ObservationSegment


@dataclass(frozen=True)
class ForkPoint:
    """Where a continuation leaves its source."""

    source: int  # rollout index of the source in its group
    index: int  # k of K
    # The first response tokens, which are the source's own; at AXPO's fork points they end with
    # an opening <tool_call>
    prefix_tokens: int


@dataclass(frozen=True)
class RolloutStats:
    """Seconds and counts of one rollout; diagnostics only."""

    started: float = 0.0  # seconds since the epoch, by the worker's clock
    seconds: float = 0.0
    tool_seconds: float = 0.0
    engine_seconds: float = 0.0
    # of each wait for tools, seconds since the start
    tool_spans: tuple[tuple[float, float], ...] = ()
    prompt_tokens: int = 0  # of the first request, images expanded
    cached_tokens: int = 0  # of these, served from the prefix cache
    later_prompt_tokens: int = 0  # of all further requests
    later_cached_tokens: int = 0
    # of the last request that gave a token, images expanded; 0: there was none
    last_prompt_tokens: int = 0
    tool_calls: int = 0
    tool_failures: int = 0  # calls answered with an error that is the policy's fault
    tools: tuple[str, ...] = ()  # those that its calls reached, one each
    fault: str = ""  # why its verifier failed


@dataclass(frozen=True)
class Trajectory:
    """One rollout, or one continuation with its prefix, from the prompt to its end."""

    question_id: str
    rollout: int  # index in its group; a continuation carries its source's
    prompt_ids: Ids  # [P], one <|image_pad|> per question image
    segments: tuple[Segment, ...]
    end: EndReason
    answer: str | None = None
    reward: float | None = None  # None: infrastructure failed, so it was not scored
    fork: ForkPoint | None = None
    stats: RolloutStats = RolloutStats()

    def __getstate__(self) -> dict[str, Any]:
        # What was derived from the segments is derived again where it is needed: to send it, too,
        # would double the bytes.
        state = self.__dict__
        return {name: state[name] for name in _TRAJECTORY_FIELDS}

    @cached_property
    def response_ids(self) -> Ids:
        """Policy and observation tokens in order, shape [R]."""
        return _concat([s.token_ids for s in self.segments], np.int32)

    @cached_property
    def logprobs(self) -> Floats:
        """Log-probabilities as sampled, shape [R]; 0 on observations."""
        parts: list[NDArray[Any]] = []
        for segment in self.segments:
            if isinstance(segment, PolicySegment):
                parts.append(segment.logprobs)
            else:
                parts.append(np.zeros(len(segment.token_ids)))
        return _concat(parts, np.float32)

    @cached_property
    def entropies(self) -> Floats | None:
        """Entropies in nats, shape [R], 0 on observations; None if the engine gave none."""
        parts: list[NDArray[Any]] = []
        for segment in self.segments:
            if isinstance(segment, ObservationSegment):
                parts.append(np.zeros(len(segment.token_ids)))
            elif segment.entropies is None:
                return None
            else:
                parts.append(segment.entropies)
        return _concat(parts, np.float32)

    @cached_property
    def policy_mask(self) -> NDArray[np.bool_]:
        """True on tokens that the policy sampled, shape [R]."""
        parts = [np.full(len(s.token_ids), isinstance(s, PolicySegment)) for s in self.segments]
        return _concat(parts, np.bool_)

    @property
    def images(self) -> tuple[ToolImage, ...]:
        """Images of observations, in order of appearance, without the question's own."""
        observations = [s for s in self.segments if isinstance(s, ObservationSegment)]
        return tuple(itertools.chain.from_iterable(segment.images for segment in observations))

    @property
    def policy_tokens(self) -> int:
        """Tokens that this rollout generated itself; the prefix of a fork is its source's."""
        prefix = self.fork.prefix_tokens if self.fork else 0
        return int(self.policy_mask[prefix:].sum())


_TRAJECTORY_FIELDS = tuple(Trajectory.__dataclass_fields__)


@dataclass(frozen=True)
class Resample(TravelsJoined):
    """One selected prefix of a source, and its K continuations."""

    source: int  # rollout index
    prefix_tokens: int
    continuations: tuple[Trajectory, ...]


@dataclass(frozen=True)
class Group(TravelsJoined):
    """The N rollouts of one question, and the resamples of its selected prefixes."""

    question: Question
    rollouts: tuple[Trajectory, ...]
    worker: int  # the rollout worker whose engine holds the prefixes
    resamples: tuple[Resample, ...] = ()
    # Indices of the rollouts whose forks were still under way when the others were trained
    # (`resampler.schedule: carry`). They train later, with their continuations.
    carried: tuple[int, ...] = ()

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Rewards of the rollouts, shape [N].

        Raises ValueError if a rollout has none; such groups are dropped before they get here.
        """
        return rewards_of(self.rollouts)


def rewards_of(trajectories: Sequence[Trajectory]) -> NDArray[np.float64]:
    """Return the verified outcome of each trajectory; raise ValueError if one has none."""
    return np.array([_reward(t) for t in trajectories], dtype=np.float64)


def turns(trajectory: Trajectory) -> list[Span]:
    """Return the policy's turns: maximal runs of policy tokens.

    The prefix of a fork and its continuation are one turn.
    """
    mask = trajectory.policy_mask.astype(np.int8)
    # The mask changes at the start and behind the end of each run.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def tool_call_spans(trajectory: Trajectory, tokens: SpecialTokens) -> list[Span]:
    """Return the spans of the tool calls, both tags included, in order.

    A call begins after the turn's thinking: a literal `<tool_call>` inside thinking is no call
    (docs/method.md, rule 2). A call that is never closed runs to the end of its turn, without the
    end-of-turn token. It is an attempt, so it counts as tool use; this is our reading.
    """
    spans: list[Span] = []
    for start, stop in turns(trajectory):
        calls = read_turn(trajectory.response_ids[start:stop], tokens).calls
        spans += [(start + opening, start + end) for opening, end in calls]
    return spans


def uses_tools(trajectory: Trajectory, tokens: SpecialTokens) -> bool:
    """Return whether the policy opened a tool call: membership in T, the tool-using subgroup."""
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
            # The environment writes an observation in one piece: nobody can go on inside it.
            if isinstance(segment, ObservationSegment):
                break
            segment = _first_tokens(segment, left)
        kept.append(segment)
        left -= len(segment.token_ids)
    if left != 0:
        raise ValueError(
            f"a prefix of {prefix_tokens} tokens does not end where the policy can go on"
        )
    return tuple(kept)


def recovered(group: Group, resample: Resample) -> bool:
    """Return whether the best continuation of a prefix did better than its source."""
    source = next(t for t in group.rollouts if t.rollout == resample.source)
    return bool(rewards_of(resample.continuations).max() > _reward(source))


def unusable(question_id: str, reason: str) -> Question:
    """Return a question that cannot be asked: whoever reads its image is told why.

    Args:
        question_id: its id.
        reason: one line.
    """

    def read() -> Pixels:
        raise UnusableQuestion(reason)

    return Question(question_id, "", (LazyImage(read),), "", fault=reason)


def stored(question: Question) -> Question:
    """Return the question with its images in Ray's object store; lazy ones are read.

    So there is one copy, however many rollouts and forks read it.

    Raises:
        UnusableQuestion: an image cannot be read.
    """
    import ray

    images: list[QuestionImage] = []
    sizes: list[tuple[int, int]] = []
    for image in question.images:
        if isinstance(image, np.ndarray | LazyImage):
            read = pixels(image)
            sizes.append(image_size(read))
            image = ray.put(read)
        images.append(image)
    if not sizes:
        return question
    if len(sizes) < len(images):  # some are in the store already
        return replace(question, images=tuple(images))
    return replace(question, images=tuple(images), image_sizes=tuple(sizes))


def pixels(image: QuestionImage | ToolImage) -> Pixels:
    """Return the pixels of an image.

    A lazy one is read. Others are fetched from Ray's object store if need be, which blocks, for 60
    seconds at most.

    Raises:
        UnusableQuestion: a lazy image cannot be read.
        ImagesLost: a tool's image cannot be fetched.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, LazyImage):
        return _read(image)
    if isinstance(image, StoredImage):
        return fetched([image])[0]
    import ray

    return ray.get(image, timeout=FETCH_S)


def _read(image: LazyImage) -> Pixels:
    """Read a lazy image; raise UnusableQuestion if the disk or the file is at fault."""
    try:
        return image.read()
    except OSError as error:
        raise UnusableQuestion(f"{type(error).__name__}: {error}") from error


def _first_tokens(segment: PolicySegment, length: int) -> PolicySegment:
    entropies = None if segment.entropies is None else segment.entropies[:length]
    return PolicySegment(
        segment.token_ids[:length], segment.logprobs[:length], segment.policy_version, entropies
    )


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id} ended in"
            f" {trajectory.end} and has no reward"
        )
    return trajectory.reward


def _concat(parts: Sequence[NDArray[Any]], dtype: DTypeLike) -> NDArray[Any]:
    if not parts:
        return np.zeros(0, dtype=dtype)
    return np.concatenate([np.asarray(part, dtype=dtype) for part in parts])
