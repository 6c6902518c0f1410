"""Read demonstrations to fine-tune on, from JSONL or Hugging Face datasets.

A row is a chat with images; it becomes a scripted trajectory. It has `messages` (roles system,
user, assistant, tool, in the order of a rollout), `images` and optionally `tools`:

    {"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "reasoning_content": "Too small.",
         "tool_calls": [{"function": {"name": "zoom", "arguments": {...}}}]},
        {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "the crop"}]},
        {"role": "assistant", "content": "\\boxed{7}", "weight": 1}],
     "images": ["photo.png", {"bytes": ...}],
     "tools": [{"type": "function", "function": {...}}]}

`images` are file names (relative to the JSONL), `data:` addresses, bytes, or what `datasets` makes
of them. The image parts of the messages take them in order. The assistant's turns are trained on,
except for those of weight 0. Every token of a row comes from `rollout_workers.chat`, as in a
rollout: the text of a tool or a user cannot forge a turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from axpo.errors import AxpoError
from axpo.tasks.data import DataConfig, Row, epoch_order, image_source
from rollout_workers.chat import Chat
from rollout_workers.trajectory import ObservationSegment, Pixels, Question, Segment, Trajectory
from tool_server.images import ImageError, decode

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """A tool result as the chat renders it."""

    text: str
    images: tuple[Pixels, ...]


class Demonstrations:
    """Give the rows in a new random order each epoch.

    A row becomes a trajectory when it is asked for.
    """

    def __init__(self, config: DataConfig, chat: Chat, seed: int) -> None:
        """Read the rows; raise AxpoError if there is no such data."""
        self._rows = config.rows()
        self._config, self._chat, self._seed = config, chat, seed

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int) -> tuple[Question, Trajectory]:
        """Return example number `index` of an endless series.

        Raises:
            AxpoError: something is wrong with the row; names the row and says what.
        """
        epoch, position = divmod(index, len(self._rows))
        order = epoch_order(len(self._rows), f"{self._seed}/{epoch}")
        number = order[position]
        try:
            return self._trajectory(f"{number}-{epoch}", self._rows[number])
        except (KeyError, TypeError, ValueError, ImageError, StopIteration) as error:
            where = f"{self._config.path}, row {number + 1}"
            missing = isinstance(error, KeyError)
            fault = f"{error.args[0]}: missing" if missing else str(error)
            raise AxpoError(f"{where}: {fault}") from None

    def _trajectory(self, name: str, row: Row) -> tuple[Question, Trajectory]:
        messages = list(row["messages"])
        # The messages take the images in order, whatever role they have.
        images = iter([self._decode(image) for image in row.get("images") or ()])
        system = None
        if messages and messages[0]["role"] == "system":
            system = _text(messages.pop(0))
        if not messages or messages[0]["role"] != "user":
            raise ValueError("messages: expected a user message after the optional system message")
        shown = _take_images(messages[0], images)
        question = Question(name, _text(messages[0]), shown, answer="")
        script = _script(messages[1:], images)
        # An image that no message shows is most likely a mistake in the row.
        if next(images, None) is not None:
            raise ValueError("images: more than the messages have image parts")
        tools = row.get("tools") or []
        trajectory = self._chat.trajectory(question, tools, system, script.turns)
        segments = tuple(_masked(trajectory, script.weights))
        return question, replace(trajectory, segments=segments)

    def _decode(self, image: Any) -> Pixels:
        return decode(image_source(image, self._config.folder), self._config.images)


@dataclass(frozen=True)
class _Script:
    """The turns after the question; what tools showed between two turns of the policy is a list."""

    turns: list[str | Sequence[Shown]]
    weights: list[float]  # of the policy's turns


def _script(messages: Sequence[Message], images: Iterator[Pixels]) -> _Script:
    turns: list[str | Sequence[Shown]] = []
    weights: list[float] = []
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            turns.append(_policy_text(message))
            weight = message.get("weight")
            weights.append(1 if weight is None else weight)
        elif message["role"] == "tool":
            shown = Shown(_text(message), _take_images(message, images))
            if not turns:
                raise ValueError("messages: a tool message before the assistant's first")
            # Several results in a row answer the calls of one turn.
            before = [] if isinstance(turns[-1], str) else turns.pop()
            turns.append([*before, shown])
        else:
            raise ValueError(
                f"messages[{number}]: role {message['role']!r}; "
                "after the user's come assistant and tool"
            )
    return _Script(turns, weights)


def _masked(trajectory: Trajectory, weights: Sequence[float]) -> Iterator[Segment]:
    """Make observations of the turns of weight 0: they are read, never trained on."""
    left = iter(weights)
    for segment in trajectory.segments:
        if isinstance(segment, ObservationSegment) or next(left):
            yield segment
        else:
            yield ObservationSegment(segment.token_ids)


def _policy_text(message: Message) -> str:
    """Return what follows the template's opening `<think>`: thinking, then answer or calls."""
    # The template opens the thinking, so a text that does so too must not.
    content = _text(message).removeprefix("<think>").lstrip("\n")
    # Some rows have thinking and answer in one text, others thinking apart.
    if "</think>" not in content:
        content = f"{message.get('reasoning_content') or ''}\n</think>\n\n{content}"
    for call in message.get("tool_calls") or ():
        content += f"<tool_call>\n{_call_text(call.get('function', call))}\n</tool_call>"
    return content


def _call_text(call: Mapping[str, Any]) -> str:
    """Return a call as the policy writes it."""
    # In many chat rows the arguments are a text that holds JSON.
    arguments = call["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _take_images(message: Message, images: Iterator[Pixels]) -> tuple[Pixels, ...]:
    """Take as many images as the message has image parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return ()
    taken = []
    for part in content:
        if part["type"] != "image":
            continue
        image = next(images, None)
        if image is None:
            raise ValueError("images: fewer than the messages have image parts")
        taken.append(image)
    return tuple(taken)
