"""Say where a rollout may be forked: the first half of rule 2 (docs/method.md).

A place gives the fork points of a rollout. Each is the length of a prefix, and the span of tokens
whose uncertainty ranks it (`rankings.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

from axpo.registry import Registry, Variant
from rollout_workers.special_tokens import Span, SpecialTokens, read_turn
from rollout_workers.trajectory import Trajectory, tool_call_spans, turns, uses_tools


class ForkPoint(NamedTuple):
    """A point at which a rollout may be forked."""

    prefix_tokens: int  # response tokens that a continuation keeps
    span: Span  # the tokens that rank the point


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
    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
        """Return the fork points of a rollout in order; none if it cannot be forked here.

        Args:
            trajectory: a rollout of the subgroup.
            tokens: ids of the tokenizer's special tokens.
        """

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

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
        """Return the opening of the first call, ranked by the whole call."""
        return [_opening(span) for span in tool_call_spans(trajectory, tokens)[:1]]


@places.register("every_call")
class EveryCall(ForkPlace):
    """Keep all up to and including the opening of any call (past the paper)."""

    inside_call = True

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
        """Return the opening of each call, ranked by that call."""
        return [_opening(span) for span in tool_call_spans(trajectory, tokens)]


@places.register("prompt")
class Prompt(ForkPlace):
    """Keep nothing: the rollouts of the paper's choice start anew (ablation: no prefix fix)."""

    keeps_prefix = False

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
        """Return the prompt, ranked by the first call."""
        # The same rank as at `first_call`, so that the same rollouts are chosen.
        return [ForkPoint(0, span) for span in tool_call_spans(trajectory, tokens)[:1]]


@places.register("answer")
class Answer(ForkPlace):
    """Keep the thinking of a rollout that calls no tool (ablation: no-tool rollouts)."""

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
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

    def points(self, trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
        """Return the end of each observation, ranked by the turn after it."""
        # Every turn but the first follows an observation.
        return [ForkPoint(span[0], span) for span in turns(trajectory)[1:]]

    def subgroup(self, trajectory: Trajectory, tokens: SpecialTokens) -> bool:
        """Return True: every rollout may be forked, whatever its outcome."""
        return True

    def keeps(self, score: float) -> bool:
        """Return whether the entropy rose."""
        return score < 0


def _opening(call: Span) -> ForkPoint:
    """Return the point after the opening tag of a tool call, ranked by the whole call."""
    return ForkPoint(call[0] + 1, call)


def _answers(trajectory: Trajectory, tokens: SpecialTokens) -> list[ForkPoint]:
    found = []
    for start, stop in turns(trajectory):
        # Thinking that never ends leaves no place to fork. The end of turn is no part of the
        # answer: its probability says nothing about it.
        text = read_turn(trajectory.response_ids[start:stop], tokens).text
        if text is not None and text[0] < text[1]:
            span = (start + text[0], start + text[1])
            found.append(ForkPoint(span[0], span))
    return found
