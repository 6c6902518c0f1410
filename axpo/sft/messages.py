"""Read one message of a demonstration as the chat template writes it.

What the template would change or leave out is refused, never changed silently. Messages of errors
name a place as in the row: `messages[2].tool_calls[0]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from axpo.tasks.data import MARK
from axpo.texts import one_line, shown
from rollout_workers.families import THINK_CLOSE, ModelFamily, split_thought

Message: TypeAlias = Mapping[str, Any]

# Of a message, its parts and its calls. `name` and the ids say nothing that the template writes.
MESSAGE_FIELDS = frozenset(("role", "content", "name", "tool_call_id", "id"))
ASSISTANT_FIELDS = MESSAGE_FIELDS | {"reasoning_content", "tool_calls", "weight"}
PART_FIELDS = frozenset(("type", "text", "image"))
CALL_FIELDS = frozenset(("type", "function", "name", "arguments", "id", "index"))


@dataclass(frozen=True)
class Content:
    """What a user or a tool shows: a text with images in it."""

    text: str
    places: tuple[int, ...]  # of each image the character of the text before which it stands


@dataclass(frozen=True)
class PolicyTurn:
    """What the policy writes in one turn, without the end of the turn."""

    text: str
    calls: int  # structured ones; the text ends with them
    trained: bool
    where: str


def content_of(message: Message, where: str, *, marks: bool = False) -> Content:
    """Return what a message shows, its parts in their order.

    Args:
        message: with `content`: a text, or a list of parts.
        where: what messages of errors name.
        marks: `<image>` in a content that is one text stands for an image. In a part it is text.

    Raises:
        ValueError: a part is neither a text nor an image.
    """
    text, places = "", []
    for part in _parts(message, where, marks=marks):
        if part is None:
            places.append(len(text))
        else:
            text += part
    return Content(text, tuple(places))


def text_of(message: Message, where: str) -> str:
    """Return the text of a message that shows no image.

    Raises:
        ValueError: it shows one, or a part that is neither a text nor an image.
    """
    content = content_of(message, where)
    if content.places:
        role = message["role"]
        raise ValueError(f"{where}.content: an image; a message of the {role} has only text")
    return content.text


def policy_turn(message: Message, family: ModelFamily, where: str, *, last: bool) -> PolicyTurn:
    """Return what the policy writes in a message of the assistant, as the template writes it.

    Args:
        message: with `content`, `reasoning_content`, `tool_calls` and `weight`.
        family: of the model.
        where: what messages of errors name.
        last: it is the last message of the row.

    Raises:
        ValueError: the template does not write it as a rollout's turn.
    """
    check_fields(message, ASSISTANT_FIELDS, where)
    content, thought = text_of(message, where), _thought(message, family, where)
    found = split_thought(content)[0] if thought is None else thought
    # Such a turn would stand in the prompt of no rollout.
    if family.opens_thinking and not found and not last:
        raise ValueError(
            f"{where}: no thinking (`reasoning_content`, or a content with {THINK_CLOSE}); before "
            f"the last turn the template of {family.name} then opens none, but every turn of a "
            "rollout begins with it"
        )
    calls = _calls(message, family, where)
    if not calls and not found and not content.strip():
        expected = "a content, a reasoning_content or calls"
        raise ValueError(f"{where}: an empty turn; expected {expected}")
    text = family.assistant_text(content, calls, thought)
    # The Instruct template asks whether there are parts, not whether they hold any text.
    if calls and not content and message.get("content") and not family.opens_thinking:
        text = f"\n{text}"
    return PolicyTurn(text, len(calls), _is_trained(message, where), where)


def check_fields(found: Message, known: frozenset[str], where: str) -> None:
    """Raise ValueError if a message, a part or a call has a field that would be left out.

    A field that is null says nothing: data sets give all rows the same fields.
    """
    unknown = [name for name, value in found.items() if name not in known and value is not None]
    if unknown:
        expected = ", ".join(sorted(known))
        raise ValueError(f"{where}: unknown field {shown(unknown[0])}; expected {expected}")


def _thought(message: Message, family: ModelFamily, where: str) -> str | None:
    thought = message.get("reasoning_content")
    if thought is not None and not isinstance(thought, str):
        found = type(thought).__name__
        raise ValueError(f"{where}.reasoning_content: expected a text, found {found}")
    if thought and not family.opens_thinking:
        raise ValueError(
            f"{where}.reasoning_content: {thought[:40]!r}; expected none, because the template of "
            f"{family.name} leaves it out"
        )
    return thought


def _is_trained(message: Message, where: str) -> bool:
    weight = message.get("weight")
    if weight is None:
        return True
    if weight not in (0, 1):
        raise ValueError(f"{where}.weight: expected 0 or 1, found {shown(weight)}")
    return bool(weight)


def _calls(message: Message, family: ModelFamily, where: str) -> list[str]:
    """Return the calls of a message as the policy writes them."""
    calls = message.get("tool_calls")
    if calls is None:
        return []
    if isinstance(calls, str) or not isinstance(calls, Sequence):
        raise ValueError(f"{where}.tool_calls: expected a list, found {type(calls).__name__}")
    numbered = enumerate(calls)
    return [_call_text(call, family, f"{where}.tool_calls[{i}]") for i, call in numbered]


def _call_text(call: Any, family: ModelFamily, where: str) -> str:
    if not isinstance(call, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(call).__name__}")
    check_fields(call, CALL_FIELDS, where)
    function = call.get("function") or call
    if not isinstance(function, Mapping):
        raise ValueError(f"{where}.function: expected an object, found {type(function).__name__}")
    name, arguments = function.get("name"), function.get("arguments")
    # The template writes the name as it is, between quotes.
    if not isinstance(name, str) or json.dumps(name, ensure_ascii=False) != f'"{name}"':
        raise ValueError(
            f"{where}.name: expected a text that needs no escapes, found {shown(name)}"
        )
    # In many rows the arguments are a text that holds JSON: it is written as it stands.
    if not isinstance(arguments, str | Mapping):
        found = type(arguments).__name__
        raise ValueError(f"{where}.arguments: expected an object or its JSON, found {found}")
    return family.call_text(name, arguments)


def _parts(message: Message, where: str, *, marks: bool) -> list[str | None]:
    """Return the parts of a message's content in their order: texts, and None for an image."""
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return _marked(content) if marks else [content]
    if not isinstance(content, Sequence):
        found = type(content).__name__
        raise ValueError(f"{where}.content: expected a text or a list of parts, found {found}")
    return [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]


def _marked(text: str) -> list[str | None]:
    first, *others = text.split(MARK)
    parts: list[str | None] = [first]
    for other in others:
        parts += [None, other]
    return parts


def _part(part: Any, where: str) -> str | None:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(part).__name__}")
    # A dataset's columns have one type: what a part does not have is None, or an empty text.
    given = {name: value for name, value in part.items() if value is not None}
    kind = given.get("type", "image" if "image" in given else "text")
    text = given.get("text")
    if kind == "image" and not text:
        check_fields(given, PART_FIELDS, where)
        return None
    if kind == "text" and isinstance(text, str) and "image" not in given:
        check_fields(given, PART_FIELDS, where)
        return text
    fields = [f"{name}={shown(value, 30)}" for name, value in given.items()]
    found = one_line(", ".join(fields), 120) or "nothing"
    raise ValueError(f"{where}: expected a text or an image, found {found}")
