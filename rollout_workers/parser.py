"""Tool calls of one policy turn: strict, block by block, from token ids.

vLLM's own parser turns a whole answer into plain text when one block is bad, and accepts NaN,
duplicate keys and calls inside thinking. Here a bad block is a `BadCall` with a message for the
policy, and "no call" and "malformed call" stay apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollout_workers.families import THINK_CLOSE
from rollout_workers.special_tokens import Ids, SpecialTokens, read_turn

MAX_CHARACTERS = 16_384
MAX_DEPTH = 16


@dataclass(frozen=True)
class Call:
    """A tool call that can be read; whether such a tool exists is not known here."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class BadCall:
    """A block that is no call."""

    message: str  # what the policy reads as its tool response


@dataclass(frozen=True)
class Turn:
    """What one turn of the policy says."""

    # What follows the thinking; None if thinking never closed or calls were made
    answer_text: str | None
    calls: tuple[Call | BadCall, ...]


def parse_turn(ids: Ids, tokens: SpecialTokens, decode: Callable[[Ids], str]) -> Turn:
    """Read one turn.

    Args:
        ids: from the end of the template's opening to `<|im_end|>`, which may be missing.
        tokens: the special tokens.
        decode: gives the text of token ids.
    """
    reading = read_turn(ids, tokens)
    if reading.calls:
        blocks = [ids[start:stop] for start, stop in reading.calls]
        return Turn(None, tuple(_parse_block(block, tokens, decode) for block in blocks))
    # Without a call, what follows the thinking is the answer.
    if reading.text is None:
        return Turn(None, ())
    start, stop = reading.text
    text = decode(ids[reading.closing : stop])
    if reading.closing < start:
        # Where the tag is spelled in pieces, its last token may hold the answer's beginning.
        text = text.partition(THINK_CLOSE)[2]
    return Turn(text.strip(), ())


def _parse_block(ids: Ids, tokens: SpecialTokens, decode: Callable[[Ids], str]) -> Call | BadCall:
    """Read a block from `<tool_call>` to `</tool_call>`, or to the end of the turn."""
    if ids[-1] != tokens.call_close:
        return _bad("<tool_call> is never closed by </tool_call>")
    # A character takes at most four byte tokens: more tokens are not worth decoding.
    if len(ids) > 4 * MAX_CHARACTERS:
        return _bad(f"{len(ids)} tokens, at most {MAX_CHARACTERS} characters are allowed")
    text = decode(ids[1:-1]).strip()
    if len(text) > MAX_CHARACTERS:
        return _bad(f"{len(text)} characters, at most {MAX_CHARACTERS} are allowed")
    try:
        value = _strict_json(text)
    except RecursionError:
        return _bad(f"nested deeper than {MAX_DEPTH} levels")
    except ValueError as error:
        return _bad(f"not valid JSON: {error}")
    if _depth(value) > MAX_DEPTH:
        return _bad(f"nested deeper than {MAX_DEPTH} levels")
    return _call(value)


def _call(value: Any) -> Call | BadCall:
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return _bad('expected an object {"name": ..., "arguments": {...}}')
    if not isinstance(value["name"], str):
        return _bad('"name" is not a string')
    if not isinstance(value["arguments"], dict):
        return _bad('"arguments" is not an object')
    return Call(value["name"], value["arguments"])


def _bad(reason: str) -> BadCall:
    return BadCall(f"malformed call: {reason}")


def _strict_json(text: str) -> Any:
    """Parse JSON without NaN, infinities and duplicate keys; ValueError if it is not valid."""
    value = json.loads(
        text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
    )
    # A lone surrogate passes json.loads and breaks every later writer.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("duplicate key")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


def _depth(value: Any) -> int:
    """Return how deep objects and lists are nested, without recursion."""
    depth = 0
    level = [value]
    while True:
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return depth
        depth += 1
        below: list[Any] = []
        for item in level:
            below += item.values() if isinstance(item, dict) else item
        level = below
