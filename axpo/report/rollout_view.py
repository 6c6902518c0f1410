"""Recorded groups as a reader follows them.

A rollout is blocks of thinking, calls, results and answers, and continuations stand beside their
source. These are pure functions from the records of `axpo.record.records` to what the template of
the page shows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any

SURE = 0.9
"""Tokens sampled with at least this probability are shown plain."""

BOX_SIDE = 1000.0
"""Zoom boxes are in thousandths of the image's sides."""

# The text of an observation has the tokens of the chat template around what the tool said.
_TEMPLATE_TOKENS = re.compile(
    r"<\|im_start\|>(?:user|assistant)|<\|[a-z_]+\|>|</?tool_response>|<think>"
)

Record = Mapping[str, Any]


class Kind(StrEnum):
    """What a part of a response is."""

    THINK = "think"
    CALL = "call"
    ANSWER = "answer"
    RESULT = "result"


@dataclass(frozen=True)
class Piece:
    """One policy token, or one whole observation, at its position in the response."""

    position: int
    kind: Kind
    text: str
    probability: float | None = None  # None: observed
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Neighbouring pieces of one kind.

    Attributes:
        kind: what they are.
        runs: (text, probability); a probability of None if the tokens were sure or observed.
        images: names of the images in them.
    """

    kind: Kind
    runs: list[tuple[str, float | None]]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """A zoom on an image of the question, in thousandths of its sides."""

    image: int
    x1: float
    y1: float
    x2: float
    y2: float
    right: bool
    fork: bool
    key: str


@dataclass(frozen=True)
class Rollout:
    """A trajectory, ready to show."""

    key: str
    title: str
    record: Record
    opening: Kind  # what its turns begin with
    blocks: list[Block]
    turns: int
    tokens: int

    @property
    def right(self) -> bool:
        """Return whether its reward is above 0."""
        return (self.record["reward"] or 0) > 0


@dataclass(frozen=True)
class Tree:
    """The prefix of a source and what it led to: its own continuation, and K others."""

    source: Rollout
    prefix: list[Block]
    branches: list[Rollout]  # the source's own continuation first
    own_trained: bool

    @property
    def recovered(self) -> bool:
        """Return whether a continuation is better than the source's own."""
        own, *others = [branch.record["reward"] or 0.0 for branch in self.branches]
        return max(others, default=own) > own


@dataclass(frozen=True)
class GroupView:
    """One question with all its rollouts, ready to show."""

    record: Record
    rollouts: list[Rollout]
    trees: list[Tree]
    boxes: list[Box]

    @property
    def right(self) -> int:
        """Return how many rollouts are right."""
        return sum(rollout.right for rollout in self.rollouts)

    @property
    def recovered(self) -> int:
        """Return how many prefixes a continuation recovered."""
        return sum(tree.recovered for tree in self.trees)

    @property
    def under_way(self) -> list[int]:
        """Return the numbers, from 1, of sources that wait for their carried forks."""
        carried = self.record.get("carried", [])
        return [source + 1 for source in carried if not self.record["rollouts"][source]["credit"]]


def group_view(record: Record) -> GroupView:
    """Return one record of `RunDirectory.groups`, ready to show."""
    group_key = f"{record['step']}-{record['question']['id']}"
    # Some models begin a turn inside thinking, others outside of it.
    opening = Kind.THINK if record["prompt"].endswith("<think>\n") else Kind.ANSWER
    rollouts = []
    for row in record["rollouts"]:
        number = row["rollout"]
        rollouts.append(_rollout(row, f"{group_key}-{number}", f"Rollout {number + 1}", opening))
    trees = [_tree(resample, rollouts[resample["source"]]) for resample in record["resamples"]]
    # The first branch is the source's own, which is shown as a rollout already.
    shown = list(rollouts)
    for tree in trees:
        shown += tree.branches[1:]
    images = len(record["question"]["images"])
    boxes: list[Box] = []
    for rollout in shown:
        boxes += _boxes(rollout, images)
    return GroupView(record, rollouts, trees, boxes)


def _tree(resample: Record, source: Rollout) -> Tree:
    cut = resample["prefix_tokens"]
    branches = [_rollout(source.record, source.key, "The source's own", source.opening, cut)]
    for number, row in enumerate(resample["continuations"], 1):
        key = f"{source.key}-{cut}-{number}"
        branches.append(_rollout(row, key, f"Fork {number}", source.opening, cut))
    prefix = [piece for piece in _pieces(source.record, source.opening) if piece.position < cut]
    # More tokens of the source were trained than its prefix has: its own continuation was too.
    credit = source.record.get("credit")
    own_trained = credit is not None and credit["tokens"] > _policy_tokens(prefix)
    return Tree(source, _blocks(prefix), branches, own_trained)


def _rollout(record: Record, key: str, title: str, opening: Kind, start: int = 0) -> Rollout:
    """Return a trajectory from the response token `start` on."""
    everything = _pieces(record, opening)
    shown = [piece for piece in everything if piece.position >= start]
    results = sum(piece.kind == Kind.RESULT for piece in everything)
    return Rollout(
        key=key,
        title=title,
        record=record,
        opening=opening,
        blocks=_blocks(shown),
        turns=1 + results,
        tokens=_policy_tokens(shown),
    )


def _policy_tokens(pieces: Sequence[Piece]) -> int:
    return sum(piece.kind != Kind.RESULT for piece in pieces)


def _pieces(record: Record, opening: Kind) -> list[Piece]:
    """Return the pieces of a response whose turns begin with thinking or with an answer."""
    pieces: list[Piece] = []
    position, kind = 0, opening
    for segment in record["segments"]:
        if segment["kind"] == "observation":
            text = _TEMPLATE_TOKENS.sub("", segment["text"]).strip()
            images = tuple(segment["images"])
            pieces.append(Piece(position, Kind.RESULT, text, images=images))
            position += len(segment["token_ids"])
            # An observation ends a turn.
            kind = opening
            continue
        for text, logprob in zip(segment["token_texts"], segment["logprobs"], strict=True):
            kind = _kind_at(text, kind, opening)
            shown = "" if _is_hidden(text, kind) else text
            pieces.append(Piece(position, kind, shown, math.exp(logprob)))
            kind = _kind_after(text, kind)
            position += 1
    return pieces


def _kind_at(text: str, before: Kind, opening: Kind) -> Kind:
    """Return what a token is: a call opens only outside thinking."""
    if before == Kind.ANSWER and text == "<tool_call>":
        return Kind.CALL
    # A model whose turns begin inside thinking thinks once a turn.
    thinks = before == opening == Kind.ANSWER and text == "<think>"
    return Kind.THINK if thinks else before


def _kind_after(text: str, kind: Kind) -> Kind:
    """Return what comes after a token: the answer if it closes the thinking or a call."""
    closes_thinking = kind == Kind.THINK and text == "</think>"
    closes_call = kind == Kind.CALL and text == "</tool_call>"
    return Kind.ANSWER if closes_thinking or closes_call else kind


def _is_hidden(text: str, kind: Kind) -> bool:
    """Return whether a token only marks where a block or a turn ends."""
    return text in ("<think>", "<|im_end|>") or (kind == Kind.THINK and text == "</think>")


def _blocks(pieces: Iterable[Piece]) -> list[Block]:
    blocks = []
    for kind, members in groupby(pieces, key=lambda piece: piece.kind):
        part = _trimmed(list(members))
        if part:
            images: list[str] = []
            for piece in part:
                images += piece.images
            blocks.append(Block(kind, _runs(part), tuple(images)))
    return blocks


def _trimmed(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces without those at both ends that show nothing."""
    written = [i for i, piece in enumerate(pieces) if piece.text.strip() or piece.images]
    return pieces[written[0] : written[-1] + 1] if written else []


def _runs(pieces: Sequence[Piece]) -> list[tuple[str, float | None]]:
    """Return the text of some pieces: sure neighbours joined, the others one by one."""
    runs: list[tuple[str, float | None]] = []
    for sure, members in groupby(pieces, key=_is_sure):
        run = list(members)
        if sure:
            runs.append(("".join(piece.text for piece in run), None))
        else:
            runs += [(piece.text, piece.probability) for piece in run]
    return runs


def _is_sure(piece: Piece) -> bool:
    return piece.probability is None or piece.probability >= SURE


def _boxes(rollout: Rollout, images: int) -> list[Box]:
    """Return the boxes of a trajectory's readable calls on the question's images."""
    boxes = []
    pieces = _pieces(rollout.record, rollout.opening)
    for kind, members in groupby(pieces, key=lambda piece: piece.kind):
        if kind != Kind.CALL:
            continue
        found = _zoom("".join(piece.text for piece in members))
        if found is None:
            continue
        image, (x1, y1, x2, y2) = found
        # A later image is of an observation, which the page does not show large.
        if x1 < x2 and y1 < y2 and 0 <= image < images:
            forked = rollout.record["fork"] is not None
            boxes.append(Box(image, x1, y1, x2, y2, rollout.right, forked, rollout.key))
    return boxes


def _zoom(call: str) -> tuple[int, tuple[float, float, float, float]] | None:
    """Return the image and the box of a call, clamped to the image; None if it is no zoom."""
    text = call.removeprefix("<tool_call>").removesuffix("</tool_call>")
    try:
        arguments = json.loads(text)["arguments"]
        x1, y1, x2, y2 = (_clamped(float(value)) for value in arguments["bbox_2d"])
        image = int(arguments.get("img_idx", 0))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        # What a policy writes need not be readable.
        return None
    return image, (x1, y1, x2, y2)


def _clamped(value: float) -> float:
    return min(max(value, 0.0), BOX_SIDE)
