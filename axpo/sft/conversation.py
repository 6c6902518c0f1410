"""Read the messages of a demonstration as a rollout: a question, turns, and what tools showed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any

from axpo.sft.messages import (
    MESSAGE_FIELDS,
    Content,
    PolicyTurn,
    check_fields,
    content_of,
    policy_turn,
    text_of,
)
from axpo.sft.tool_schemas import json_of
from axpo.tasks.data import listed
from axpo.texts import one_line, shown
from rollout_workers.families import ModelFamily

FOLLOWS = {"user": ("assistant",), "assistant": ("tool",), "tool": ("tool", "assistant")}
"""Which messages may follow one of a role. Several of tools answer the calls of one turn."""


@dataclass(frozen=True)
class Conversation:
    """One demonstration, without its images."""

    system: str | None
    question: Content
    turns: tuple[PolicyTurn, ...]
    results: tuple[tuple[Content, ...], ...]
    """After each turn but the last: what the tools showed, one for each tool message."""


def conversation_of(row: Mapping[str, Any], family: ModelFamily) -> Conversation:
    """Return the conversation of a row.

    Args:
        row: with `messages`, and `images` if they show any.
        family: of the model that is fine-tuned.

    Raises:
        ValueError: the messages are no rollout, or the template cannot write them.
    """
    messages = json_of(row.get("messages"), "messages")
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: expected a list, found {type(messages).__name__}")
    roles = [_role(message, number) for number, message in enumerate(messages)]
    asked = 1 if roles[:1] == ["system"] else 0
    _check_order(roles, asked)
    _check_named_images(messages, listed(row.get("images") or []))

    def content(number: int) -> Content:
        where = f"messages[{number}]"
        check_fields(messages[number], MESSAGE_FIELDS, where)
        return content_of(messages[number], where, marks=True)

    turns: list[PolicyTurn] = []
    results: list[tuple[Content, ...]] = []
    for start, stop in _turns(roles):
        where, last = f"messages[{start}]", stop == len(messages)
        turns.append(policy_turn(messages[start], family, where, last=last))
        if not last:
            results.append(tuple(content(number) for number in range(start + 1, stop)))
    if not any(turn.trained for turn in turns):
        raise ValueError("messages: all turns have weight 0, so nothing would be trained on")
    return Conversation(
        system=text_of(messages[0], "messages[0]") if asked else None,
        question=content(asked),
        turns=tuple(turns),
        results=tuple(results),
    )


def _role(message: Any, number: int) -> str:
    if not isinstance(message, Mapping):
        found = type(message).__name__
        raise ValueError(f"messages[{number}]: expected an object, found {found}")
    return one_line(str(message.get("role")), 40)


def _check_order(roles: Sequence[str], asked: int) -> None:
    """Raise ValueError if the messages do not follow each other as in a rollout.

    Args:
        roles: of all messages.
        asked: place of the user's message.
    """
    if roles[asked : asked + 1] != ["user"]:
        raise ValueError("messages: expected a user message after the optional system message")
    if len(roles) == asked + 1 or roles[-1] != "assistant":
        raise ValueError("messages: expected a message of the assistant at the end")
    for number, (before, role) in enumerate(pairwise(roles[asked:]), asked + 1):
        expected = FOLLOWS[before]
        if role not in expected:
            names = " or ".join(expected)
            raise ValueError(
                f"messages[{number}]: role {role!r} after {before!r}; expected {names}"
            )


def _check_named_images(messages: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> None:
    """Raise ValueError if a part names an image that is not the row's: those are taken in order."""
    for number, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
        for place, part in enumerate(parts):
            named = part.get("image") if isinstance(part, Mapping) else None
            if named and not _is_one_of(named, images):
                raise ValueError(
                    f"messages[{number}].content[{place}].image: {shown(named)} is none of the "
                    "row's `images`, which the image parts take in order"
                )


def _is_one_of(named: Any, images: Sequence[Any]) -> bool:
    """Return whether an image is among the images, as far as names tell."""
    names = [_file_name(image) for image in images]
    name = _file_name(named)
    # Bytes have no name, and may be those of any file.
    return named in images or name is None or None in names or name in names


def _file_name(image: Any) -> str | None:
    """Return the name of an image's file, without its folders; None if it has none."""
    path = image.get("path") if isinstance(image, Mapping) else image
    # Base64 and `data:` addresses end in no suffix.
    return PurePath(path).name if isinstance(path, str) and PurePath(path).suffix else None


def _turns(roles: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of each message of the assistant with the tools' messages after it."""
    starts = [number for number, role in enumerate(roles) if role == "assistant"]
    yield from pairwise([*starts, len(roles)])
