"""Demonstrations against the chat templates of real-shaped folders, on random conversations.

The right ids are what the template renders, encoded in one piece. The template of Qwen2.5-VL knows
no tools: conversations with tools are compared with that of Qwen2.5, the model it was made from.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axpo.errors import AxpoError
from axpo.sft.demonstrations import Demonstrations
from axpo.tasks.data import DataConfig
from axpo.tasks.rows import BadRow
from rollout_workers.chat import Chat
from rollout_workers.trajectory import PolicySegment

ROWS = 400
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
PIECES = (
    *("Which digit", " is", " it?", "7", "1234", ".", ", ", "\n", "\n\n", " ", "  ", "\t", "\r\n"),
    *("é", "e\u0301", "数字", "🙂", "<", "</", "|", "'s", '{"a": [1]}', "\\boxed{7}", "\u00a0"),
)


@pytest.fixture(scope="module", params=["thinking", "instruct", "qwen2_5"])
def chat(request) -> Chat:
    return Chat.load(str(request.getfixturevalue(request.param)))


def text_of(rng: random.Random, least: int = 0) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(least, 8)))


class Writer:
    """Writes one random row, and counts its images."""

    def __init__(self, chat: Chat, rng: random.Random) -> None:
        self.family, self.rng, self.images = chat.family, rng, 0
        # Qwen2.5's template takes no parts, and Qwen2.5-VL's no tools.
        self.tools = rng.random() < 0.7
        self.parts = chat.family.template_shows_tools or not self.tools

    def row(self) -> dict:
        rng = self.rng
        messages = []
        # Qwen2.5 and Qwen2.5-VL differ in the system text that they write if there is none.
        if not self.family.template_shows_tools and self.tools:
            messages.append({"role": "system", "content": f"Look. {text_of(rng)}"})
        elif rng.random() < 0.5:
            messages.append({"role": "system", "content": self.text()})
        messages.append({"role": "user", "content": self.shown()})
        turns = rng.randint(1, 3) if self.tools else 1
        for number in range(turns):
            messages.append(self.turn(last=number == turns - 1))
            if number < turns - 1:
                for _ in range(rng.randint(1, 2)):
                    messages.append({"role": "tool", "content": self.shown()})
        row = {"messages": messages, "images": ["photo.png"] * self.images}
        if self.tools:
            description = text_of(rng)
            row["tools"] = [{"function": {"name": "zoom", "description": description}}]
        return row

    def text(self, words: str | None = None) -> str | list:
        """Write a text, as one or in parts."""
        rng = self.rng
        words = text_of(rng) if words is None else words
        if not self.parts or rng.random() < 0.5:
            return words
        cut = rng.randint(0, len(words))
        return [{"type": "text", "text": words[:cut]}, {"text": words[cut:], "image": None}][
            : 1 + cut
        ]

    def shown(self) -> str | list:
        """Write texts and images in any order."""
        rng = self.rng
        if not self.parts or rng.random() < 0.2:
            return text_of(rng)
        content = []
        for _ in range(rng.randint(0, 4)):
            if rng.random() < 0.4:
                content.append(rng.choice([{"type": "image"}, {"image": "photo.png"}]))
                self.images += 1
            else:
                content.append({"type": "text", "text": text_of(rng)})
        return content

    def turn(self, *, last: bool) -> dict:
        rng = self.rng
        message = {"role": "assistant", "content": self.text()}
        if self.family.opens_thinking:
            thought = text_of(rng, 0 if rng.random() < 0.2 else 1)
            if rng.random() < 0.5:
                message["reasoning_content"] = thought
            else:
                opening = rng.choice(["", "<think>", "<think>\n", "aside <think>"])
                words = f"{opening}{thought}{rng.choice(['', chr(10)])}</think>{text_of(rng)}"
                message["content"] = self.text(words)
        elif rng.random() < 0.3:
            message["content"] = self.text(f"<think>\n{text_of(rng)}\n</think>\n\n{text_of(rng)}")
        if self.tools and not (last and rng.random() < 0.7):
            message["tool_calls"] = [self.call() for _ in range(rng.randint(1, 3))]
        elif not says_something(message):
            message["content"] = "7"  # an empty turn is refused
        return message

    def call(self) -> dict:
        arguments = {"box": [1, 2.5, None], "label": text_of(self.rng), "deep": {"é": True}}
        # As many data sets have them. Qwen2.5's template would quote a text again.
        if self.family.template_shows_tools and self.rng.random() < 0.3:
            arguments = json.dumps(arguments)
        function = {"name": "zoom", "arguments": arguments}
        return self.rng.choice([function, {"type": "function", "function": function}])


def says_something(message: dict) -> bool:
    content = message["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    return any((part.get("text") or "").strip() for part in parts)


def template_text(chat: Chat, row: dict) -> str:
    """Return what the template renders, up to the end of the last turn."""
    template = None
    if not chat.family.template_shows_tools and "tools" in row:
        package = importlib.util.find_spec("trl")
        folder = Path(package.origin).parent / "chat_templates"
        template = (folder / "qwen2_5.jinja").read_text()
    messages = [
        message | {"content": without_none(message["content"])} for message in row["messages"]
    ]
    rendered = chat.tokenizer.apply_chat_template(
        messages, tools=row.get("tools"), chat_template=template, tokenize=False
    )
    return rendered.removesuffix("\n")


def without_none(content):
    if isinstance(content, str):
        return content
    return [{name: value for name, value in part.items() if value is not None} for part in content]


def demonstrations(folder: Path, chat: Chat, rows: list[dict]) -> Demonstrations:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    (folder / "photo.png").write_bytes(file.getvalue())
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Demonstrations(DataConfig(path=str(folder / "data.jsonl")), chat, 0)


def test_ids_are_the_templates_on_random_conversations(chat, tmp_path):
    rng = random.Random(chat.family.name)
    rows = [Writer(chat, rng).row() for _ in range(ROWS)]
    data = demonstrations(tmp_path, chat, rows)
    equal = refused = 0
    for number, row in enumerate(rows):
        try:
            _, trajectory = data.of_row(number)
        except BadRow as error:
            check_refused(chat, row, str(error))
            refused += 1
            continue
        rendered = template_text(chat, row)
        # The policy's tokens are its turns, each with its end.
        turns = [s.token_ids for s in trajectory.segments if isinstance(s, PolicySegment)]
        texts = turn_texts(chat, rendered)
        assert [chat.decode(ids) for ids in turns] == [chat.decode(ids_of(chat, t)) for t in texts]
        assert [ids.tolist() for ids in turns] == [ids_of(chat, text) for text in texts]
        # Before a turn that begins with a line break the template's ids join two.
        if not any(text.lstrip(" \t").startswith(("\n", "\r")) for text in texts):
            whole = np.concatenate([trajectory.prompt_ids, trajectory.response_ids])
            assert whole.tolist() == ids_of(chat, rendered), row
            equal += 1
    assert equal > 0.6 * ROWS, (equal, refused)
    assert (refused > 4) == chat.family.opens_thinking


def test_a_template_that_writes_calls_in_another_way_is_refused(chat, tmp_path):
    if not chat.family.template_shows_tools:
        pytest.skip("its template writes no calls")
    other = copy.deepcopy(chat.tokenizer)
    other.chat_template = other.chat_template.replace('"arguments": ', '"parameters": ')
    assert other.chat_template != chat.tokenizer.chat_template
    with pytest.raises(AxpoError, match=r"chat template writes .*parameters.*; expected .*argum"):
        demonstrations(tmp_path, dataclasses.replace(chat, tokenizer=other), [{}])


def test_a_thought_that_the_template_leaves_out_is_refused(chat, tmp_path):
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "7", "reasoning_content": "Clear."},
    ]
    data = demonstrations(tmp_path, chat, [{"messages": messages}])
    if chat.family.opens_thinking:
        assert data.example(0)[1].answer == "7"
        return
    with pytest.raises(
        AxpoError, match=r"messages\[1\]\.reasoning_content: 'Clear\.'; expected none"
    ):
        data.example(0)


def ids_of(chat: Chat, text: str) -> list[int]:
    return chat.tokenizer.encode(text, add_special_tokens=False)


def turn_texts(chat: Chat, rendered: str) -> list[str]:
    """Return what follows each opening of a turn, to the turn's end."""
    pieces = rendered.split("<|im_start|>assistant\n")[1:]
    tag = "<think>\n" if chat.family.opens_thinking else ""
    ends = [piece.index("<|im_end|>") + len("<|im_end|>") for piece in pieces]
    assert all(piece.startswith(tag) for piece in pieces)
    return [piece[len(tag) : end] for piece, end in zip(pieces, ends, strict=True)]


def check_refused(chat: Chat, row: dict, error: str) -> None:
    """The template opens no thinking in one of the turns."""
    rendered = template_text(chat, row)
    pieces = rendered.split("<|im_start|>assistant\n")[1:]
    without = [number for number, piece in enumerate(pieces) if not piece.startswith("<think>\n")]
    assistants = [n for n, m in enumerate(row["messages"]) if m["role"] == "assistant"]
    assert without
    assert f"messages[{assistants[without[0]]}]: no thinking" in error
