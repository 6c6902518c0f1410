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

`images` are file names (relative to the JSONL), `data:` addresses, base64, bytes, or what
`datasets` makes of them. The image parts of the messages take them in order; in a content that is
one text, so do `<image>` marks. The assistant's turns are trained on, except for those of weight 0.
`messages` and `tools` may also be JSON texts.

The text is what the model's chat template writes. It is cut into tokens as in a rollout, with what
opens a turn by itself, so the ids are the template's too unless a turn begins with a line break.
The text of a tool or a user cannot forge a turn. A row that is no rollout, or that the template
would change, is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

import numpy as np

from axpo.errors import AxpoError
from axpo.sft.conversation import Conversation, conversation_of
from axpo.sft.messages import Content, PolicyTurn, policy_turn
from axpo.sft.tool_schemas import check_calls, json_of, tools_of
from axpo.tasks.data import DataConfig, Row, epoch_order, image_source, listed
from axpo.tasks.rows import BadRow
from axpo.tasks.tables import DatasetTable
from axpo.texts import check_text, one_line, shown
from rollout_workers.chat import Chat
from rollout_workers.context import Context
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
from tool_server.images import ImageError, ImageLimits, check, decode

NOT_READ = ("videos", "audios", "system")
"""Columns of other programs. They would change what a row means, so they must be empty."""
COLUMNS = ("messages", "images", "tools", *NOT_READ)
Read: TypeAlias = Callable[[Path | bytes, ImageLimits], Pixels]
"""How an image is read: `decode`, or its size alone."""


class Demonstrations:
    """Give the rows in a new random order each epoch.

    A row becomes a trajectory when it is asked for. One that is bad is set aside: the row after it
    takes its place.
    """

    in_threads = False  # Hugging Face's tokenizers are not to be shared

    def __init__(
        self, config: DataConfig, chat: Chat, seed: int, context: Context | None = None
    ) -> None:
        """Open the rows.

        Args:
            config: where they are.
            chat: of the model that is fine-tuned.
            seed: of the order.
            context: of the model: longer rows are bad; None: that is not checked.

        Raises:
            AxpoError: there is no such data, or the chat template writes turns in a way that is
                not its family's.
        """
        _check_template(chat)
        self.path = config.path
        self._table = config.rows(COLUMNS)
        left_out = config.left_out(len(self._table))
        self._chosen = [row for row in range(len(self._table)) if row not in left_out]
        if not self._chosen:
            raise AxpoError(f"{config.path}: no row is left by {config.without}")
        self._folders = config.folders
        self._config, self._chat, self._seed, self._context = config, chat, seed, context
        self.set_aside: dict[int, str] = {}
        """Why rows were set aside, by their number from 0 among those that are asked."""

    def __len__(self) -> int:
        return len(self._chosen)

    def example(self, index: int) -> tuple[Question, Trajectory]:
        """Return example number `index` of an endless series.

        Raises:
            AxpoError: all rows are bad; names the first and says what.
        """
        count = len(self)
        epoch, position = divmod(index, count)
        order = epoch_order(count, f"{self._seed}/{epoch}")
        for step in range(count):
            number = order[(position + step) % count]
            if number in self.set_aside:
                continue
            try:
                return self.of_row(number, f"{number}-{epoch}")
            except BadRow as error:
                self.set_aside[number] = str(error)
        raise AxpoError(next(iter(self.set_aside.values())))

    def of_row(
        self, number: int, name: str = "", read: Read = decode
    ) -> tuple[Question, Trajectory]:
        """Return the example of one row.

        Args:
            number: which of the rows that are asked, from 0.
            name: the question's id.
            read: reads an image; `sized` reads its header alone, for a check.

        Raises:
            BadRow: it is no rollout that can be trained on; names the row and says what.
        """
        with self._faults_of(number):
            row = self._row(number)
            return self._trajectory(name, row, _Images(self._images(row, read)))

    @property
    def digest(self) -> str:
        """Return a name for these rows, read with these limits."""
        text = f"{self._config.model_dump_json()}{len(self)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check(self, number: int, fits: object = None) -> None:
        """Check a row without decoding its images; raise BadRow if it is no rollout."""
        self.of_row(number, read=sized)

    def files(self, number: int) -> list[Path | bytes]:
        """Return what the images of a row are read from; raise BadRow if it does not tell."""
        with self._faults_of(number):
            images = listed(self._row(number).get("images") or [])
            return [image_source(image, self._folders) for image in images]

    def decode(self, number: int) -> None:
        """Decode the images of a row; raise BadRow if one cannot be read."""
        with self._faults_of(number):
            self._images(self._row(number), decode)

    @contextmanager
    def _faults_of(self, number: int) -> Iterator[None]:
        """Name the row in what is raised inside."""
        try:
            yield
        except Exception as error:  # a template, too, may fail at any row
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            where = f"{self.path}, row {self._chosen[number] + 1}"
            raise BadRow(f"{where}: {one_line(f'{kind}{error}')}") from None

    def _row(self, number: int) -> Row:
        row = self._table.row(self._chosen[number])
        if isinstance(self._table, DatasetTable):
            # Images are {"bytes", "path"}, which are left as they are.
            row = {**self._table.without_padding(row), "images": row.get("images")}
        for name in NOT_READ:
            if row.get(name):
                raise ValueError(f"{name}: {shown(row[name])}; expected none, it would be left out")
        check_text([row.get(name) for name in ("messages", "tools")])
        return row

    def _images(self, row: Row, read: Read) -> list[Pixels]:
        """Return the images of a row; raise ValueError, which names the image."""
        found = []
        for number, image in enumerate(listed(row.get("images") or []), 1):
            try:
                source = image_source(image, self._folders)
                found.append(read(source, self._config.images))
            except ImageError as error:
                name = source if isinstance(source, Path) else f"image {number}"
                raise ValueError(f"images: {name} {error}") from None
            except ValueError as error:
                raise ValueError(f"images: {error}") from None
        return found

    def _trajectory(self, name: str, row: Row, images: _Images) -> tuple[Question, Trajectory]:
        conversation = conversation_of(row, self._chat.family)
        asked = conversation.question
        question = Question(name, asked.text, images.take(asked), "", image_places=asked.places)
        segments = self._segments(conversation, images)
        images.check_all_taken()
        last = parse_turn(segments[-1].token_ids, self._chat.tokens, self._chat.decode)
        tools = tools_of(row)
        check_calls(json_of(row["messages"], "messages"), tools)
        trajectory = Trajectory(
            question_id=name,
            rollout=0,
            prompt_ids=self._chat.prompt(asked.text, asked.places, tools, conversation.system),
            segments=segments,
            end=EndReason.ANSWERED,
            answer=last.answer_text,
        )
        self._check_fits(trajectory, images)
        return question, trajectory

    def _check_fits(self, trajectory: Trajectory, images: _Images) -> None:
        if self._context is not None:
            tokens = len(trajectory.prompt_ids) + len(trajectory.response_ids)
            self._context.check(tokens - len(images.sizes), images.sizes)

    def _segments(self, conversation: Conversation, images: _Images) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        # After the last turn the tools show nothing.
        for turn, results in zip_longest(conversation.turns, conversation.results):
            segments.append(_turn_segment(turn, self._chat))
            if results is not None:
                _check_asks(segments[-1], self._chat, turn)
                segments.append(self._observation(results, images))
        return tuple(segments)

    def _observation(self, results: Sequence[Content], images: _Images) -> ObservationSegment:
        shown: list[Pixels] = []
        for result in results:
            shown += images.take(result)
        ids = self._chat.shown([(result.text, result.places) for result in results])
        return ObservationSegment(ids, tuple(shown))


def sized(source: Path | bytes, limits: ImageLimits) -> Pixels:
    """Return pixels of the right size; raise ImageError if the image's header is wrong."""
    width, height = check(source, limits)
    return np.broadcast_to(np.uint8(0), (height, width, 3))


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
        self.sizes = [(image.shape[1], image.shape[0]) for image in images]

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
    check_control_tokens(ids[:-1], chat, turn.where)
    _check_calls(ids, chat, turn)
    if not turn.trained:
        return ObservationSegment(ids)
    return PolicySegment(ids, np.zeros(len(ids), np.float32), policy_version=0)


def check_control_tokens(ids: Ids, chat: Chat, where: str) -> None:
    """Raise ValueError if a turn holds a token that ends it, or that no policy may sample."""
    tokens = chat.tokens
    ends = (chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id)
    known = [token for token in ends if token is not None]
    forbidden = np.isin(ids, [tokens.im_start, tokens.im_end, *known, *tokens.banned])
    if forbidden.any():
        found = chat.decode(ids[forbidden][:1])
        raise ValueError(f"{where}: {found!r} in its text; a policy never writes this token")


def _check_asks(segment: Segment, chat: Chat, turn: PolicyTurn) -> None:
    """Raise ValueError if a turn without a call is followed by what a tool showed."""
    calls = parse_turn(segment.token_ids, chat.tokens, chat.decode).calls
    if not calls:
        raise ValueError(f"{turn.where}: no call, but a message of a tool follows")


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
