"""The model's chat format as token ids: prompts, observations and scripted trajectories. Text goes in once, nothing is re-rendered."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from rollout_workers.parser import parse_turn
from rollout_workers.trajectory import (
    EndReason,
    Ids,
    ObservationSegment,
    Pixels,
    PolicySegment,
    Question,
    Segment,
    SpecialTokens,
    Trajectory,
)

T = TypeVar("T")
_SPECIAL = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "think_close": "</think>",
    "call_open": "<tool_call>",
    "call_close": "</tool_call>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "video_pad": "<|video_pad|>",
}
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_THREAD = ThreadPoolExecutor(1, "chat")
"""Tokenizing and parsing happen here, off the engine's event loop. One thread: Hugging Face's tokenizers are not to be shared."""
_PROBE = (
    "\ue000"  # a private-use character: marks where a tool's text stands in the rendered template
)


async def in_chat_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run chat work without holding up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, function, *arguments)


class Observed(Protocol):
    """What the policy sees of one tool call."""

    @property
    def text(self) -> str: ...
    @property
    def images(self) -> tuple[Pixels, ...]: ...


@dataclass(frozen=True)
class Chat:
    """Built by `Chat.load`. `head`, `between` and `tail` are the template's text around tool responses, read from the template itself."""

    tokenizer: Any
    plain: Any
    """The same BPE without any added token: the one way untrusted text becomes ids. Qwen's `<tool_call>`, `<think>` and
    `</tool_response>` are added tokens with special=False, so `split_special_tokens` would still let a tool's text forge them."""
    tokens: SpecialTokens
    head: str
    between: str
    tail: str

    @classmethod
    def load(cls, model: str) -> Chat:
        """Read tokenizer and chat template of a model folder; ValueError where one of Qwen's special tokens is missing."""
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        vocabulary = tokenizer.get_added_vocab()
        if missing := [text for text in ("<think>", *_SPECIAL.values()) if text not in vocabulary]:
            raise ValueError(f"{model}: the tokenizer has no {', '.join(missing)}")
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
        plain["added_tokens"] = []
        probe = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "!"},
            *[{"role": "tool", "content": _PROBE}] * 2,
        ]
        before, between, tail = tokenizer.apply_chat_template(
            probe, add_generation_prompt=True, tokenize=False
        ).split(_PROBE)
        return cls(
            tokenizer=tokenizer,
            plain=Tokenizer.from_str(json.dumps(plain)),
            tokens=SpecialTokens(**{name: vocabulary[text] for name, text in _SPECIAL.items()}),
            head=before[before.rindex("<|im_end|>") + len("<|im_end|>") :],
            between=between,
            tail=tail,
        )

    def prompt(
        self, text: str, images: int, tools: list[dict[str, Any]], system: str | None
    ) -> Ids:
        """[P] system message and tools' schemas, the question's images (one `<|image_pad|>` each) and text, the assistant's opening.

        ValueError where the text itself contains a placeholder.
        """
        content = [*[{"type": "image"}] * images, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, tokenize=False
        )
        ids = self.encode_policy(rendered)
        if np.isin(ids, (self.tokens.image_pad, self.tokens.video_pad)).sum() != images:
            raise ValueError(
                f"the question's text contains an image or video placeholder: {text[:80]!r}"
            )
        return ids

    def observation(self, results: Sequence[tuple[str, int]]) -> Ids:
        """[T] what follows a closed turn: one tool response per (text, number of images), then the assistant's opening.

        The template's own special tokens are ids by construction; the text of a result can forge none of them.
        """
        parts: list[tuple[str, bool]] = []  # (text, trusted)
        for i, (text, images) in enumerate(results):
            parts += [
                (self.between if i else self.head, True),
                (text, False),
                (_IMAGE * images, True),
            ]
        return self._encode([*parts, (self.tail, True)])

    def encode_policy(self, text: str) -> Ids:
        """[T] with added tokens recognised: text that a policy or a scripted teacher wrote."""
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Text with special tokens visible."""
        return str(
            self.tokenizer.decode(
                np.asarray(ids).tolist(),
                skip_special_tokens=False,
                clean_up_tokenization_spaces=False,
            )
        )

    def trajectory(
        self,
        question: Question,
        tools: list[dict[str, Any]],
        system: str | None,
        turns: Sequence[str | Sequence[Observed]],
    ) -> Trajectory:
        """A scripted trajectory (SFT): the policy's texts, each from after the template's opening, and the tool results between them.

        Every text is closed by `<|im_end|>` here. Logprobs are 0, the policy version is 0, the reward is None.
        """
        if not turns or not isinstance(turns[-1], str):
            raise ValueError("a scripted trajectory ends with a text of the policy")
        segments: list[Segment] = []
        for turn in turns:
            if isinstance(turn, str):
                ids = self.encode_policy(turn.removesuffix("<|im_end|>") + "<|im_end|>")
                segments.append(PolicySegment(ids, np.zeros(len(ids), np.float32), 0))
            else:
                ids = self.observation([(result.text, len(result.images)) for result in turn])
                segments.append(
                    ObservationSegment(
                        ids, tuple(image for result in turn for image in result.images)
                    )
                )
        return Trajectory(
            question_id=question.id,
            rollout=0,
            prompt_ids=self.prompt(question.text, len(question.images), tools, system),
            segments=tuple(segments),
            end=EndReason.ANSWERED,
            answer=parse_turn(segments[-1].token_ids, self.tokens, self.decode).answer_text,
        )

    def _encode(self, parts: Sequence[tuple[str, bool]]) -> Ids:
        """Ids of the joined parts, with added tokens recognised in trusted parts only.

        Plain text between two added tokens is tokenized in one piece, as the full tokenizer does, whoever wrote it:
        a tool's "done." and the template's newline may share a token.
        """
        vocabulary = self.tokenizer.get_added_vocab()
        pattern = re.compile(
            "(" + "|".join(re.escape(t) for t in sorted(vocabulary, key=len, reverse=True)) + ")"
        )
        ids: list[int] = []
        text = ""
        for part, trusted in parts:
            for piece in pattern.split(part) if trusted else [part]:
                if trusted and piece in vocabulary:
                    ids += [
                        *self.plain.encode(text, add_special_tokens=False).ids,
                        vocabulary[piece],
                    ]
                    text = ""
                else:
                    text += piece
        return np.asarray(
            ids + self.plain.encode(text, add_special_tokens=False).ids, dtype=np.int32
        )
