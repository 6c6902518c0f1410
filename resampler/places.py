"""Where a rollout may be forked (docs/method.md, rule 2): the first half of choosing a prefix.

A place gives the *points* of a rollout: how many of its response tokens a continuation keeps,
and the span of tokens whose uncertainty ranks the point (`rankings.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeAlias

import numpy as np

from axpo.registry import Registry, Variant
from rollout_workers.trajectory import (
    Span,
    SpecialTokens,
    Trajectory,
    tool_call_spans,
    turns,
    uses_tools,
)

Point: TypeAlias = tuple[int, Span]
"""The length of the prefix in response tokens, and the span that ranks it."""


class ForkPlace(Variant):
    """Say where a rollout may be forked, and what follows from that for the rest of the method."""

    ranking: ClassVar[str | None] = None
    """The only ranking that makes sense here; None: any."""
    needs_trigger: ClassVar[bool] = True
    """Whether only the subgroup of a question that triggers is forked (rule 1)."""
    inside_call: ClassVar[bool] = False
    """Whether every continuation begins inside a tool call."""
    keeps_prefix: ClassVar[bool] = True
    """Whether continuations keep tokens of their source, which credit can then train."""
    joins_group: ClassVar[bool] = False
    """Whether continuations must be credited together with their group (`credit.joined`)."""

    @abstractmethod
    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the points of a rollout in order; none if it cannot be forked here."""

    def subgroup(self, trajectory: Trajectory, tokens: SpecialTokens) -> bool:
        """Return whether a rollout belongs to the subgroup that triggers and is forked."""
        return uses_tools(trajectory, tokens)

    def keeps(self, score: float) -> bool:
        """Return whether a point with this score is a candidate."""
        return True


places: Registry[ForkPlace] = Registry("fork places", ForkPlace, core="points")


@places.register("first_call")
class FirstCall(ForkPlace):
    """Keep all up to and including the first opening `<tool_call>` (the paper)."""

    inside_call = True

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the opening of the first call, ranked by the whole call."""
        return [(start + 1, (start, stop)) for start, stop in _calls(trajectory, tokens)[:1]]


@places.register("every_call")
class EveryCall(ForkPlace):
    """Keep all up to and including the opening of any call (past the paper)."""

    inside_call = True

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the opening of each call, ranked by that call."""
        return [(start + 1, (start, stop)) for start, stop in _calls(trajectory, tokens)]


@places.register("prompt")
class Prompt(ForkPlace):
    """Keep nothing: the rollouts of the paper's choice start anew (ablation: no prefix fix)."""

    keeps_prefix = False

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the prompt of a rollout that calls a tool, ranked by its first call."""
        return [(0, span) for span in _calls(trajectory, tokens)[:1]]


@places.register("answer")
class Answer(ForkPlace):
    """Keep the thinking of a rollout that calls no tool (ablation: no-tool rollouts)."""

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the end of the thinking, ranked by the answer without its end of turn."""
        if uses_tools(trajectory, tokens):
            return []
        return _answers(trajectory, tokens)

    def subgroup(self, trajectory: Trajectory, tokens: SpecialTokens) -> bool:
        """Return whether a rollout calls no tool."""
        return not uses_tools(trajectory, tokens)


@places.register("observation")
class Observation(ForkPlace):
    """Keep all up to a tool's result after which the entropy rose, in any question (ARPO)."""

    ranking = "entropy_rise"
    needs_trigger = False
    joins_group = True

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
        """Return the end of each observation, ranked by the turn after it."""
        return [(span[0], span) for span in turns(trajectory)[1:]]

    def subgroup(self, trajectory: Trajectory, tokens: SpecialTokens) -> bool:
        """Return True: every rollout may be forked, whatever its outcome."""
        return True

    def keeps(self, score: float) -> bool:
        """Return whether the entropy rose."""
        return score < 0


def fork_prefix_tokens(trajectory: Trajectory, tokens: SpecialTokens) -> int:
    """Return the length of the paper's prefix: up to and including the first opening `<tool_call>`.

    Raises:
        ValueError: the rollout calls no tool.
    """
    points = FirstCall().points(trajectory, tokens)
    if not points:
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id} "
            "has no tool call to fork at"
        )
    return points[0][0]


def _calls(trajectory: Trajectory, tokens: SpecialTokens) -> list[Span]:
    return tool_call_spans(trajectory, tokens)


def _answers(trajectory: Trajectory, tokens: SpecialTokens) -> list[Point]:
    found = []
    for start, stop in turns(trajectory):
        ids = trajectory.response_ids[start:stop]
        closes = np.flatnonzero(ids == tokens.think_close)
        if len(closes) == 0:
            continue
        answer = start + int(closes[0]) + 1
        end = stop - int(ids[-1] == tokens.im_end)
        if answer < end:
            found.append((answer, (answer, end)))
    return found
