"""What a recorded group must look like before anybody works with it.

A run directory may come from elsewhere, and a disk may have damaged it. A record that does not fit
is left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from axpo.texts import check_text, one_line
from rollout_workers.trajectory import EndReason, ForkPoint, RolloutStats

ImageName: TypeAlias = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*\.(png|jpg)$", max_length=100)
]
"""A plain name: one with a slash would lead out of the folder."""

# Strict: what reads a record computes with its numbers, and a text "0.5" is none.
Number: TypeAlias = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False, strict=True)]
Whole: TypeAlias = Annotated[int, Field(strict=True)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)]
Ids: TypeAlias = list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]]
# Round-off may leave a logprob a little above 0.
LogProb: TypeAlias = Annotated[float, Field(ge=-1e5, le=1.0, allow_inf_nan=False, strict=True)]

_MEASURED = [one.name for one in fields(RolloutStats) if isinstance(one.default, int | float)]
"""Numbers of a rollout's statistics."""


def _check_measured(stats: Any) -> Any:
    """Raise ValueError if a text stands for a number of `RolloutStats`, which is not strict."""
    if isinstance(stats, Mapping):
        texts = [name for name in _MEASURED if isinstance(stats.get(name), str)]
        if texts:
            raise ValueError(f"{texts[0]}: expected a number")
    return stats


Stats: TypeAlias = Annotated[RolloutStats, BeforeValidator(_check_measured)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Question(_Form):
    id: str
    text: str
    answer: str
    images: list[ImageName]
    family: str | None = None
    kind: str | None = None


class _Observation(_Form):
    kind: Literal["observation"]
    text: str
    images: list[ImageName]
    token_ids: Ids


class _Policy(_Form):
    kind: Literal["policy"]
    policy_version: Whole
    token_ids: Ids
    token_texts: list[str]
    logprobs: list[LogProb]
    entropies: list[Number] | None


class _Credit(_Form):
    advantage: Number
    tokens: Count


class _Trajectory(_Form):
    question_id: str
    rollout: Count
    fork: ForkPoint | None
    end: EndReason
    answer: str | None
    reward: Number | None
    stats: Stats
    prompt_ids: Ids
    segments: list[Annotated[_Observation | _Policy, Field(discriminator="kind")]]
    credit: _Credit | None


class _Resample(_Form):
    source: Count
    prefix_tokens: Count
    continuations: list[_Trajectory]


class _Group(_Form):
    step: Count
    worker: Whole | None
    question: _Question
    prompt: str
    rollouts: Annotated[list[_Trajectory], Field(min_length=1)]
    resamples: list[_Resample]
    carried: list[Count] = []


class _Bar(_Form):
    question: str
    rollout: Count
    fork: Count | None
    worker: Whole
    start: Number
    stop: Number
    tools: list[tuple[Number, Number]]


def check_group(record: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line, if a record is no group."""
    check_text(record)
    group: _Group = _fitted(_Group, record)
    for trajectory in group.rollouts:
        if trajectory.fork is not None:
            raise ValueError("rollouts: a rollout is no fork")
        _check_lengths(trajectory)
    for resample in group.resamples:
        _check_resample(resample, group.rollouts)
    for source in group.carried:
        if source >= len(group.rollouts):
            raise ValueError(f"carried: no rollout {source}")


def _check_resample(resample: _Resample, rollouts: Sequence[_Trajectory]) -> None:
    """Raise ValueError if continuations do not belong to a rollout of the group."""
    source, prefix_tokens = resample.source, resample.prefix_tokens
    if source >= len(rollouts) or prefix_tokens > _length(rollouts[source]):
        raise ValueError(f"resamples: no token {prefix_tokens} of a rollout {source}")
    for trajectory in resample.continuations:
        fork = trajectory.fork
        if fork is None or (fork.source, fork.prefix_tokens) != (source, prefix_tokens):
            raise ValueError("resamples: a continuation is of another fork")
        if prefix_tokens > _length(trajectory):
            raise ValueError("resamples: a continuation is shorter than its prefix")
        _check_lengths(trajectory)


def _length(trajectory: _Trajectory) -> int:
    return sum(len(segment.token_ids) for segment in trajectory.segments)


def check_bar(record: Any) -> None:
    """Raise ValueError, in one line, if a record is no bar of a timeline."""
    _fitted(_Bar, record)


def _check_lengths(trajectory: _Trajectory) -> None:
    for segment in trajectory.segments:
        if isinstance(segment, _Observation):
            continue
        lengths = {len(segment.token_ids), len(segment.token_texts), len(segment.logprobs)}
        if segment.entropies is not None:
            lengths.add(len(segment.entropies))
        if len(lengths) != 1:
            raise ValueError("segments: ids, texts and logprobs differ in number")


def _fitted(form: type[Any], record: Any) -> Any:
    try:
        return form.model_validate(record)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise ValueError("too deep") from None
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ValueError(one_line(f"{place}: {fault['msg']}", 200)) from None
