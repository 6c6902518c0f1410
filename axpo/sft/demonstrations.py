"""Demonstrations to fine-tune on, from JSONL or Hugging Face datasets: chat rows with images become scripted trajectories.

A row has `messages` (roles system, user, assistant, tool, in the order of a rollout), `images` and optionally `tools`:

    {"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "reasoning_content": "Too small.", "tool_calls": [{"function": {"name": "zoom", "arguments": {...}}}]},
        {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "the crop"}]},
        {"role": "assistant", "content": "\\boxed{7}", "weight": 1}],
     "images": ["photo.png", {"bytes": ...}],
     "tools": [{"type": "function", "function": {...}}]}

`images` are file names (relative to the JSONL), `data:` addresses, bytes, or what `datasets` makes of them; the image parts of the
messages take them in order. Trained on are the assistant's turns, except those of weight 0. Every token of a row comes from
`rollout_workers.chat`, as in a rollout: the text of a tool or a user can forge no turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from axpo.errors import AxpoError
from axpo.tasks.data import DataConfig, epoch_order, image_source
from rollout_workers.chat import Chat
from rollout_workers.trajectory import ObservationSegment, Pixels, Question, Trajectory
from tool_server.images import ImageError, decode


@dataclass(frozen=True)
class Shown:
    """A tool result as the chat renders it."""

    text: str
    images: tuple[Pixels, ...]


class Demonstrations:
    """Rows in a new random order each epoch; a row becomes a trajectory when it is asked for."""

    def __init__(self, config: DataConfig, chat: Chat, seed: int) -> None:
        """Raises AxpoError where there is no such data."""
        self._rows = config.rows()
        self._config, self._chat, self._seed = config, chat, seed

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int) -> tuple[Question, Trajectory]:
        """Example `index` of an endless series. Raises AxpoError naming the row and what is wrong with it."""
        epoch, position = divmod(index, len(self._rows))
        number = epoch_order(len(self._rows), f"{self._seed}/{epoch}")[position]
        where = f"{self._config.path}, row {number + 1}"
        row = self._rows[number]
        try:
            return self._trajectory(f"{number}-{epoch}", row)
        except (KeyError, TypeError, ValueError, ImageError, StopIteration) as error:
            raise AxpoError(f"{where}: {_told(error)}") from None

    def _trajectory(self, name: str, row: Mapping[str, Any]) -> tuple[Question, Trajectory]:
        messages = list(row["messages"])
        images = iter(
            [
                decode(image_source(image, self._config.folder), self._config.images)
                for image in row.get("images") or ()
            ]
        )
        system = _text(messages.pop(0)) if messages and messages[0]["role"] == "system" else None
        if not messages or messages[0]["role"] != "user":
            raise ValueError("messages: expected a user message after the optional system message")
        question = Question(name, _text(messages[0]), _pixels(messages[0], images), "")
        turns: list[str | Sequence[Shown]] = []
        weights: list[float] = []
        for number, message in enumerate(messages[1:], 1):
            if message["role"] == "assistant":
                turns.append(_policy_text(message))
                weights.append(1 if message.get("weight") is None else message["weight"])
            elif message["role"] == "tool":
                shown = Shown(_text(message), _pixels(message, images))
                before = turns[-1] if turns else None
                if before is None:
                    raise ValueError("messages: a tool message before the assistant's first")
                if isinstance(before, str):
                    turns.append([shown])
                else:
                    turns[-1] = [*before, shown]
            else:
                raise ValueError(
                    f"messages[{number}]: role {message['role']!r}; after the user's come assistant and tool"
                )
        if next(images, None) is not None:
            raise ValueError("images: more than the messages have image parts")
        trajectory = self._chat.trajectory(question, row.get("tools") or [], system, turns)
        return question, replace(trajectory, segments=tuple(_masked(trajectory, weights)))


def _masked(trajectory: Trajectory, weights: Sequence[float]) -> Iterator[Any]:
    """Turns of weight 0 become observations: read, never trained on."""
    left = iter(weights)
    for segment in trajectory.segments:
        if isinstance(segment, ObservationSegment) or next(left):
            yield segment
        else:
            yield ObservationSegment(segment.token_ids)


def _policy_text(message: Mapping[str, Any]) -> str:
    """What follows the template's opening `<think>`: thinking, then the answer or the calls."""
    content = _text(message).removeprefix("<think>").lstrip("\n")
    if "</think>" not in content:
        content = f"{message.get('reasoning_content') or ''}\n</think>\n\n{content}"
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    for call in calls:
        arguments = (
            json.loads(call["arguments"])
            if isinstance(call["arguments"], str)
            else call["arguments"]
        )
        content += f"<tool_call>\n{json.dumps({'name': call['name'], 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
    return content


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return (
        content
        if isinstance(content, str)
        else "".join(part["text"] for part in content if part["type"] == "text")
    )


def _pixels(message: Mapping[str, Any], images: Iterator[Pixels]) -> tuple[Pixels, ...]:
    content = message.get("content") or ""
    parts = (
        [] if isinstance(content, str) else [part for part in content if part["type"] == "image"]
    )
    taken = [next(images, None) for _ in parts]
    if any(image is None for image in taken):
        raise ValueError("images: fewer than the messages have image parts")
    return tuple(image for image in taken if image is not None)


def _told(error: Exception) -> str:
    return f"{error.args[0]}: missing" if isinstance(error, KeyError) else str(error)
