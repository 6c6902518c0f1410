"""The tokens that give a turn its structure, and how a turn is read by them.

A turn is thinking, then tool calls or an answer. Where it begins is the model family's: inside
thinking, or outside of it. In the latter case thinking is what `<think>` and `</think>` enclose.
Tokenizers of Qwen2.5 have no think tokens, so there the tags are spelled in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rollout_workers.families import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    TURN_END,
    ModelFamily,
    UnknownFamily,
    family_of,
    read_config,
    text_config,
)
from rollout_workers.tokenizer import load_tokenizer

Ids: TypeAlias = NDArray[np.int32]
Span: TypeAlias = tuple[int, int]
"""[start, stop) in response coordinates."""
BAN_BIAS = -100.0
"""Added to the logits of `SpecialTokens.banned`.

The engine adds it before it samples, and the learner before its log-softmax.
"""
MAX_BANNED = 1024
"""vLLM's `MAX_NUM_LOGIT_BIAS_TOKENS`: so many ids may have a bias in one request."""
_TEXTS = {
    "im_start": "<|im_start|>",
    "im_end": TURN_END,
    "call_open": CALL_OPEN,
    "call_close": CALL_CLOSE,
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
}
# Where config.json repeats an id, engine and learner read it there.
_IN_CONFIG = {
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
}
_TAG = re.compile("</?think>")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the chat format's tokens, read from the tokenizer and never hard-coded."""

    im_start: int
    im_end: int
    think_close: int | None  # None: the tokenizer has no think tokens, see `spelled`
    call_open: int
    call_close: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    think_open: int | None = None
    opens_thinking: bool = True  # a turn begins inside thinking, which ends at `</think>`
    unused: Span = (0, 0)
    """Ids of the model beyond the tokenizer's: they have logits, but no text."""
    spelled: Mapping[int, str] = field(default_factory=dict, hash=False, repr=False)
    """Without think tokens: the text of each token of which a think tag may be spelled."""

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that are never sampled: the vision placeholders, and those beyond the tokenizer's.

        A sampled placeholder would break the count of image features. An id without text would be
        trained on, but no tool and no verifier would see it.
        """
        vision = (self.vision_start, self.vision_end, self.image_pad, self.video_pad)
        return (*vision, *range(*self.unused))


class _Tag(NamedTuple):
    """An opening or closing think tag: the tokens that spell it."""

    opens: bool
    start: int
    stop: int


@dataclass(frozen=True)
class Reading:
    """What is where in one turn, in positions of its tokens."""

    calls: list[Span]
    """The tool calls, both tags included. One that is never closed runs to the end of the turn,
    without the end-of-turn token."""
    text: Span | None
    """What follows the thinking, up to the end-of-turn token. None: the turn ends inside thinking.
    """
    closing: int = 0
    """Where the tag that closes the thinking begins; 0 if there is no thinking."""


def read_turn(ids: Sequence[int] | Ids, tokens: SpecialTokens) -> Reading:
    """Find thinking, calls and answer in one turn.

    A literal `<tool_call>` inside thinking is no call, and thinking that never closes holds none
    (docs/method.md, rule 2). A further `<tool_call>` or `<think>` inside a call is part of it.

    Args:
        ids: the turn's tokens from the end of the template's opening on, its end-of-turn token
            included if it has one.
        tokens: the special tokens.
    """
    ids = np.asarray(ids)
    stop = len(ids) - 1 if len(ids) and ids[-1] == tokens.im_end else len(ids)
    tags = _think_tags(ids[:stop], tokens)
    calls: list[Span] = []
    text = (0, stop)
    thinking, position, closing = tokens.opens_thinking, 0, 0
    while True:
        if thinking:
            close = next((tag for tag in tags if tag.start >= position and not tag.opens), None)
            if close is None:
                return Reading(calls, None)
            thinking, position, closing = False, close.stop, close.start
            text = (position, stop)
        opens = np.flatnonzero(ids[position:stop] == tokens.call_open)
        start = position + int(opens[0]) if len(opens) else stop
        # Where turns begin inside thinking, it ends once: a later `<think>` is text.
        if not tokens.opens_thinking:
            think = next((tag for tag in tags if position <= tag.start < start and tag.opens), None)
            if think is not None:
                thinking, position = True, think.stop
                continue
        if start == stop:
            return Reading(calls, text, closing)
        ends = np.flatnonzero(ids[start:stop] == tokens.call_close)
        position = start + int(ends[0]) + 1 if len(ends) else stop
        calls.append((start, position))


def special_tokens(
    family: ModelFamily, vocabulary: Mapping[str, int], config: Mapping[str, Any]
) -> SpecialTokens:
    """Return the special tokens of a model.

    Args:
        family: of the model.
        vocabulary: of its tokenizer, added tokens included.
        config: the content of its config.json.

    Raises:
        UnknownFamily: the tokenizer lacks a token that the family needs, or does not fit the
            model: other placeholders, or more ids, or far fewer.
    """
    missing = [text for text in family.required if text not in vocabulary]
    if missing:
        raise UnknownFamily(f"the tokenizer has no {', '.join(missing)}; {family.name} needs it")
    length, model_length = max(vocabulary.values()) + 1, text_config(config)["vocab_size"]
    close = vocabulary.get(THINK_CLOSE)
    tokens = SpecialTokens(
        **{name: vocabulary[text] for name, text in _TEXTS.items()},
        think_close=close,
        think_open=vocabulary.get(THINK_OPEN),
        opens_thinking=family.opens_thinking,
        unused=(length, model_length),
        spelled=_pieces(vocabulary) if close is None else {},
    )
    if length > model_length or len(tokens.banned) > MAX_BANNED:
        raise UnknownFamily(
            f"the tokenizer has {length} ids, but vocab_size of config.json is {model_length}; "
            f"expected as many, or at most {MAX_BANNED - 4} more"
        )
    for key, token in _IN_CONFIG.items():
        expected = getattr(tokens, token)
        if config.get(key, expected) != expected:
            raise UnknownFamily(
                f"{key} of config.json is {config[key]}, but {_TEXTS[token]} is {expected} in the "
                "tokenizer"
            )
    return tokens


def tokens_of(folder: str | Path) -> SpecialTokens:
    """Return the special tokens of a model folder.

    Raises:
        UnknownFamily: see `family_of` and `special_tokens`.
    """
    vocabulary = load_tokenizer(folder).get_vocab()
    return special_tokens(family_of(folder), vocabulary, read_config(folder))


def _think_tags(ids: Ids, tokens: SpecialTokens) -> list[_Tag]:
    if tokens.think_close is None:
        return _spelled_tags(ids, tokens.spelled)
    # Not `np.isin`, which took half of the time of a turn.
    is_tag = ids == tokens.think_close
    if tokens.think_open is not None:
        is_tag |= ids == tokens.think_open
    places = np.flatnonzero(is_tag)
    return [_Tag(bool(ids[at] == tokens.think_open), int(at), int(at) + 1) for at in places]


def _spelled_tags(ids: Ids, spelled: Mapping[int, str]) -> list[_Tag]:
    # A token of which no tag can be spelled separates.
    pieces = [spelled.get(token, "\0") for token in ids.tolist()]
    owner = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    return [
        _Tag(match[0] == THINK_OPEN, int(owner[match.start()]), int(owner[match.end() - 1]) + 1)
        for match in _TAG.finditer("".join(pieces))
    ]


def _pieces(vocabulary: Mapping[str, int]) -> dict[int, str]:
    """Return the text of each token that can hold a part of a think tag.

    Such a token contains the tag's first or last character, or is a part of its middle. The tags
    are ASCII, which the alphabet of byte-level BPE leaves as it is.
    """
    return {
        token: text
        for text, token in vocabulary.items()
        if "<" in text or ">" in text or text in THINK_CLOSE
    }
