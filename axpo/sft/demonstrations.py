"""Read demonstrations to fine-tune on, from JSONL or Hugging Face datasets.

A row is a chat with images; it becomes a scripted trajectory. It has `messages` (roles system,
user, assistant, tool, in the order of a rollout), `images` and optionally `tools`:

    {"messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
        {"role": "assistant", "reasoning_content": "Too small.",
         "tool_calls": [{"function": {"name": "zoom", "arguments": {...}}}]},
        {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "the crop"}]},
        {"role": "assistant", "content": "<think>Clear.</think>\\boxed{7}", "weight": 1}],
     "images": ["photo.png", {"bytes": ...}],
     "tools": [{"type": "function", "function": {...}}]}

`images` are file names (relative to the JSONL), `data:` addresses, bytes, or what `datasets` makes
of them. The image parts of the messages take them in order; in a content that is one text, so do
`<image>` marks. The assistant's turns are trained on, except for those of weight 0.

The text is what the model's chat template writes. It is cut into tokens as in a rollout, with what
opens a turn by itself, so the ids are the template's too unless a turn begins with a line break.
The text of a tool or a user cannot forge a turn. A row that is no rollout, or that the template
would change, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from axpo.errors import AxpoError
from axpo.sft.conversation import Conversation, conversation_of
from axpo.sft.messages import Content, PolicyTurn, policy_turn
from axpo.tasks.data import DataConfig, Row, epoch_order, image_source
from rollout_workers.chat import Chat
from rollout_workers.families import TURN_END
from rollout_workers.parser import BadCall, parse_turn
from rollout_workers.trajectory import (
    EndReason,
    Ids,
    ObservationSegment,
    Pixels,
    PolicySegment,
    Question,
    Segment,
    Trajectory,
)
from tool_server.images import ImageError, decode


class Demonstrations:
    """Give the rows in a new random order each epoch.

    A row becomes a trajectory when it is asked for.
    """

    def __init__(self, config: DataConfig, chat: Chat, seed: int) -> None:
        """Read the rows.

        Raises:
            AxpoError: there is no such data, or the chat template writes turns in a way that is
                not its family's.
        """
        _check_template(chat)
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
        except (ValueError, ImageError) as error:
            where = f"{self._config.path}, row {number + 1}"
            raise AxpoError(f"{where}: {error}") from None

    def _trajectory(self, name: str, row: Row) -> tuple[Question, Trajectory]:
        conversation = conversation_of(row, self._chat.family)
        images = _Images([self._decode(image) for image in row.get("images") or ()])
        asked = conversation.question
        question = Question(name, asked.text, images.take(asked), "", image_places=asked.places)
        segments = self._segments(conversation, images)
        images.check_all_taken()
        last = parse_turn(segments[-1].token_ids, self._chat.tokens, self._chat.decode)
        trajectory = Trajectory(
            question_id=name,
            rollout=0,
            prompt_ids=self._chat.prompt(
                asked.text, asked.places, _tools(row), conversation.system
            ),
            segments=segments,
            end=EndReason.ANSWERED,
            answer=last.answer_text,
        )
        return question, trajectory

    def _segments(self, conversation: Conversation, images: _Images) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        # After the last turn the tools show nothing.
        for turn, results in zip_longest(conversation.turns, conversation.results):
            segments.append(_turn_segment(turn, self._chat))
            if results is not None:
                segments.append(self._observation(results, images))
        return tuple(segments)

    def _observation(self, results: Sequence[Content], images: _Images) -> ObservationSegment:
        shown: list[Pixels] = []
        for result in results:
            shown += images.take(result)
        ids = self._chat.shown([(result.text, result.places) for result in results])
        return ObservationSegment(ids, tuple(shown))

    def _decode(self, image: Any) -> Pixels:
        return decode(image_source(image, self._config.folder), self._config.images)


def _check_template(chat: Chat) -> None:
    """Raise AxpoError if the folder's own template writes a turn otherwise than its family."""
    call = {"type": "function", "function": {"name": "probe", "arguments": {"a": [1, "é"]}}}
    message = {"role": "assistant", "content": "I look.", "tool_calls": [call, call]}
    if chat.family.opens_thinking:
        message["reasoning_content"] = "It is small."
    asked = {"role": "user", "content": "?"}
    rendered = chat.tokenizer.apply_chat_template([asked, message], tokenize=False)
    # The templates of Qwen2.5-VL and of the embedded model write no calls at all.
    if "probe" not in rendered:
        return
    turn = policy_turn(message, chat.family, "messages[1]", last=True)
    expected = f"{chat.family.opening}{turn.text}{TURN_END}\n"
    if not rendered.endswith(expected):
        found = rendered[rendered.rfind("<|im_start|>") :]
        raise AxpoError(f"the chat template writes a turn as {found!r}; expected {expected!r}")


class _Images:
    """The images of a row. The messages take them in order, whatever role they have."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self._images, self._taken = images, 0

    def take(self, content: Content) -> tuple[Pixels, ...]:
        """Return as many images as a message shows."""
        start = self._taken
        self._taken += len(content.places)
        if self._taken > len(self._images):
            raise ValueError(
                f"images: fewer than the messages have image parts (the row has "
                f"{len(self._images)})"
            )
        return tuple(self._images[start : self._taken])

    def check_all_taken(self) -> None:
        # An image that no message shows is most likely a mistake in the row.
        if self._taken < len(self._images):
            raise ValueError(
                f"images: more than the messages have image parts (the row has "
                f"{len(self._images)}, the messages {self._taken})"
            )


def _turn_segment(turn: PolicyTurn, chat: Chat) -> Segment:
    """Return a turn with its end; one of weight 0 is read, never trained on."""
    ids = chat.encode_policy(turn.text + TURN_END)
    _check_control_tokens(ids[:-1], chat, turn.where)
    _check_calls(ids, chat, turn)
    if not turn.trained:
        return ObservationSegment(ids)
    return PolicySegment(ids, np.zeros(len(ids), np.float32), policy_version=0)


def _check_control_tokens(ids: Ids, chat: Chat, where: str) -> None:
    """Raise ValueError if a turn holds a token that ends it, or that no policy may sample."""
    tokens = chat.tokens
    forbidden = np.isin(ids, [tokens.im_start, tokens.im_end, *tokens.banned])
    if forbidden.any():
        found = chat.decode(ids[forbidden][:1])
        raise ValueError(f"{where}: {found!r} in its text; a policy never writes this token")


def _check_calls(ids: Ids, chat: Chat, turn: PolicyTurn) -> None:
    """Raise ValueError if a structured call would not be read as one."""
    if not turn.calls:
        return
    # The structured calls are the last ones; before them the content may hold others.
    read = parse_turn(ids, chat.tokens, chat.decode).calls[-turn.calls :]
    for number, call in enumerate(read):
        if isinstance(call, BadCall):
            raise ValueError(f"{turn.where}.tool_calls[{number}]: {call.message}")
    if len(read) < turn.calls:
        raise ValueError(
            f"{turn.where}.tool_calls: only {len(read)} of {turn.calls} would be read as calls"
        )


def _tools(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = row.get("tools")
    if tools is None:
        return []
    are_objects = isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)
    if not are_objects:
        raise ValueError(f"tools: expected a list of objects, found {str(tools)[:80]!r}")
    return tools
