"""What follows from the segments of a response alone: its turn, its images, its earlier calls.

A fork starts from the segments of its prefix, so all of this is right for a fork too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout_workers.chat import Chat
from rollout_workers.images import ToolImage
from rollout_workers.interfaces import Called, Generation
from rollout_workers.parser import BadCall, Call, parse_turn
from rollout_workers.trajectory import Ids, ObservationSegment, Segment, SpecialTokens


def turn_index(segments: Sequence[Segment]) -> int:
    """Return the index of the turn being written: the number of observations so far."""
    return sum(isinstance(segment, ObservationSegment) for segment in segments)


def observed_images(segments: Sequence[Segment]) -> list[ToolImage]:
    """Return the images of the observations, in order."""
    images: list[ToolImage] = []
    for segment in segments:
        if isinstance(segment, ObservationSegment):
            images += segment.images
    return images


def last_turn(segments: Sequence[Segment]) -> Ids:
    """Return the token ids of the last turn: the policy segments after the last observation.

    A turn has several segments if a weight update cut it, or if it began in a prefix.
    """
    parts: list[Ids] = []
    for segment in reversed(segments):
        if isinstance(segment, ObservationSegment):
            break
        parts.insert(0, segment.token_ids)
    return np.concatenate(parts)


def earlier_calls(
    segments: Sequence[Segment], chat: Chat, max_calls_per_turn: int, images: int
) -> list[Called]:
    """Return the calls of every turn that was answered, in order.

    Args:
        segments: of the response so far.
        chat: the chat format.
        max_calls_per_turn: how many calls of a turn are run.
        images: how many images the question has.
    """
    called: list[Called] = []
    for index, segment in enumerate(segments):
        if not isinstance(segment, ObservationSegment):
            continue
        turn = parse_turn(last_turn(segments[:index]), chat.tokens, chat.decode)
        # With each call goes the number of images that the policy had seen when it wrote it.
        for call in runnable_calls(turn.calls, max_calls_per_turn):
            called.append((call.name, call.arguments, images))
        images += len(segment.images)
    return called


def runnable_calls(calls: Sequence[Call | BadCall], max_calls_per_turn: int) -> list[Call]:
    """Return the calls of a turn that are run: the first that can be read."""
    return [call for call in calls if isinstance(call, Call)][:max_calls_per_turn]


def distinct_calls(generations: Sequence[Generation], tokens: SpecialTokens) -> int:
    """Count the different tool calls, token by token, of continuations of an opening tag.

    A call that a weight update cut short counts as different from all others.
    """
    calls = set()
    for place, generation in enumerate(generations):
        closes = np.flatnonzero(generation.token_ids == tokens.call_close)
        closed = len(closes) > 0
        call = generation.token_ids[: closes[0] + 1] if closed else generation.token_ids
        # The next policy may still write it differently.
        cut_short = generation.cut and not closed
        calls.add((call.tobytes(), place if cut_short else None))
    return len(calls)
