"""The records of a group as a reader follows them: blocks of thinking, calls, results and answers, forks beside their source.

Pure functions from `axpo.record.records` to what the report's template shows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

SURE = 0.9
"""Tokens sampled with at least this probability are shown plain."""

_TEMPLATE_TOKENS = re.compile(
    r"<\|im_start\|>(?:user|assistant)|<\|[a-z_]+\|>|</?tool_response>|<think>"
)
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """One policy token, or one whole observation, at its position in the response."""

    position: int
    kind: str  # think | call | answer | result
    text: str
    probability: float | None = None
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Neighbouring pieces of one kind. `runs`: (text, probability); None where the token was sure or observed."""

    kind: str
    runs: list[tuple[str, float | None]]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """A zoom on a question image, [0, 1000] coordinates."""

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
    """A trajectory ready to show."""

    key: str
    title: str
    record: Record
    blocks: list[Block]
    turns: int
    tokens: int

    @property
    def right(self) -> bool:
        return (self.record["reward"] or 0) > 0


@dataclass(frozen=True)
class Tree:
    """A source's prefix and where it went: its own continuation, and K others."""

    source: Rollout
    prefix: list[Block]
    branches: list[Rollout]  # the source's own continuation first
    own_trained: bool

    @property
    def recovered(self) -> bool:
        own, *forks = [branch.record["reward"] or 0.0 for branch in self.branches]
        return max(forks) > own


@dataclass(frozen=True)
class GroupView:
    record: Record
    rollouts: list[Rollout]
    trees: list[Tree]
    boxes: list[Box]

    @property
    def right(self) -> int:
        return sum(rollout.right for rollout in self.rollouts)

    @property
    def recovered(self) -> int:
        return sum(tree.recovered for tree in self.trees)


def group_view(record: Record) -> GroupView:
    """One record of `RunDirectory.groups`, ready to show."""
    name = f"{record['step']}-{record['question']['id']}"
    rollouts = [
        _rollout(t, f"{name}-{t['rollout']}", f"Rollout {t['rollout'] + 1}")
        for t in record["rollouts"]
    ]
    trees = [_tree(r, rollouts[r["source"]]) for r in record["resamples"]]
    shown = [*rollouts, *(branch for tree in trees for branch in tree.branches[1:])]
    known = len(record["question"]["images"])
    return GroupView(
        record, rollouts, trees, [box for rollout in shown for box in _boxes(rollout, known)]
    )


def _tree(resample: Record, source: Rollout) -> Tree:
    cut = resample["prefix_tokens"]
    own = _rollout(source.record, source.key, "The source's own", start=cut)
    forks = [
        _rollout(t, f"{source.key}-{cut}-{k}", f"Fork {k}", start=cut)
        for k, t in enumerate(resample["continuations"], 1)
    ]
    kept = [p for p in _pieces(source.record) if p.position < cut]
    credit = source.record.get("credit")
    own_trained = credit is not None and credit["tokens"] > sum(p.kind != "result" for p in kept)
    return Tree(source, _blocks(kept), [own, *forks], own_trained)


def _rollout(record: Record, key: str, title: str, start: int = 0) -> Rollout:
    pieces = [p for p in _pieces(record) if p.position >= start]
    tokens = sum(p.kind != "result" for p in pieces)
    return Rollout(
        key,
        title,
        record,
        _blocks(pieces),
        1 + sum(p.kind == "result" for p in _pieces(record)),
        tokens,
    )


def _pieces(record: Record) -> list[Piece]:
    """The response as pieces. A turn starts thinking; after `</think>` come calls and the answer."""
    pieces: list[Piece] = []
    position, kind = 0, "think"
    for segment in record["segments"]:
        if segment["kind"] == "observation":
            text = _TEMPLATE_TOKENS.sub("", segment["text"]).strip()
            pieces.append(Piece(position, "result", text, images=tuple(segment["images"])))
            position, kind = position + len(segment["token_ids"]), "think"
            continue
        for text, logprob in zip(segment["token_texts"], segment["logprobs"], strict=True):
            if kind == "answer" and text == "<tool_call>":
                kind = "call"
            hidden = text in ("<think>", "<|im_end|>") or (kind == "think" and text == "</think>")
            pieces.append(Piece(position, kind, "" if hidden else text, math.exp(logprob)))
            if (kind == "think" and text == "</think>") or (
                kind == "call" and text == "</tool_call>"
            ):
                kind = "answer"
            position += 1
    return pieces


def _blocks(pieces: Iterable[Piece]) -> list[Block]:
    blocks = []
    for kind, members in groupby(pieces, key=lambda p: p.kind):
        part = list(members)
        written = [i for i, p in enumerate(part) if p.text.strip() or p.images]
        part = part[written[0] : written[-1] + 1] if written else []
        runs: list[tuple[str, float | None]] = []
        for sure, run in groupby(
            part, key=lambda p: p.probability is None or p.probability >= SURE
        ):
            texts = [(p.text, p.probability) for p in run]
            runs += [("".join(text for text, _ in texts), None)] if sure else texts
        if part:
            blocks.append(Block(kind, runs, tuple(name for p in part for name in p.images)))
    return blocks


def _boxes(rollout: Rollout, known: int) -> list[Box]:
    """The boxes of a trajectory's readable calls on the question's `known` images, clamped to the image."""
    boxes = []
    for kind, members in groupby(_pieces(rollout.record), key=lambda p: p.kind):
        if kind != "call":
            continue
        text = (
            "".join(p.text for p in members)
            .removeprefix("<tool_call>")
            .removesuffix("</tool_call>")
        )
        try:
            arguments = json.loads(text)["arguments"]
            x1, y1, x2, y2 = (min(max(float(v), 0.0), 1000.0) for v in arguments["bbox_2d"])
            image = int(arguments.get("img_idx", 0))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue  # what a policy writes need not be readable
        if x1 < x2 and y1 < y2 and 0 <= image < known:
            boxes.append(
                Box(
                    image,
                    x1,
                    y1,
                    x2,
                    y2,
                    rollout.right,
                    rollout.record["fork"] is not None,
                    rollout.key,
                )
            )
    return boxes
