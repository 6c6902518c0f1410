"""The model's chat format as token ids: prompts, observations and scripted trajectories.

Text becomes ids once, and nothing is rendered again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

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
_REQUIRED = ("<think>", *_SPECIAL.values())
"""The template opens a turn with `<think>`, but nothing needs its id."""
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_THREAD = ThreadPoolExecutor(1, "chat")
"""Tokenizing and parsing happen here, off the engine's event loop.

One thread: Hugging Face's tokenizers are not to be shared.
"""
# A private-use character: it marks where a tool's text stands in the rendered template.
_PROBE = "\ue000"


async def in_chat_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run chat work without holding up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, function, *arguments)


class Observed(Protocol):
    """What the policy sees of one tool call."""

    @property
    def text(self) -> str: ...
    @property
    def images(self) -> tuple[Pixels, ...]: ...


def images_of(results: Sequence[Observed]) -> tuple[Pixels, ...]:
    """Return the images of tool results, in order."""
    return tuple(itertools.chain.from_iterable(result.images for result in results))


@dataclass(frozen=True)
class Chat:
    """The chat format of one model; `Chat.load` makes it.

    `head`, `between` and `tail` are the template's text around tool responses, read from the
    template itself.
    """

    tokenizer: PreTrainedTokenizerFast
    plain: Tokenizer
    """The same BPE without any added token: the one way by which untrusted text becomes ids.

    Qwen's `<tool_call>`, `<think>` and `</tool_response>` are added tokens with special=False, so
    `split_special_tokens` would still let a tool's text forge them.
    """
    tokens: SpecialTokens
    head: str
    between: str
    tail: str

    @classmethod
    def load(cls, model: str) -> Chat:
        """Read tokenizer and chat template of a model folder.

        Raises ValueError if one of Qwen's special tokens is missing.
        """
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        vocabulary = tokenizer.get_added_vocab()
        missing = [text for text in _REQUIRED if text not in vocabulary]
        if missing:
            raise ValueError(f"{model}: the tokenizer has no {', '.join(missing)}")
        # The tokenizer's own JSON without its added tokens is the tokenizer of untrusted text.
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
        plain["added_tokens"] = []
        head, between, tail = _around_tool_responses(tokenizer)
        return cls(
            tokenizer=tokenizer,
            plain=Tokenizer.from_str(json.dumps(plain)),
            tokens=SpecialTokens(**{name: vocabulary[text] for name, text in _SPECIAL.items()}),
            head=head,
            between=between,
            tail=tail,
        )

    def prompt(
        self, text: str, images: int, tools: list[dict[str, Any]], system: str | None
    ) -> Ids:
        """Return the prompt of a question, up to and including the assistant's opening.

        Args:
            text: of the question.
            images: how many it has; each is one `<|image_pad|>`, before the text.
            tools: schemas, which the template puts into the system message.
            system: the system message, if any.

        Returns:
            Token ids, shape [P].

        Raises:
            ValueError: if the text itself contains an image or video placeholder.
        """
        content = [*[{"type": "image"}] * images, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rendered = self.tokenizer.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, tokenize=False
        )
        # The text of a question is trusted, except that the engine counts placeholders: one more
        # than there are images would shift all image features.
        ids = self.encode_policy(rendered)
        if np.isin(ids, (self.tokens.image_pad, self.tokens.video_pad)).sum() != images:
            raise ValueError(
                f"the question's text contains an image or video placeholder: {text[:80]!r}"
            )
        return ids

    def observation(self, results: Sequence[tuple[str, int]]) -> Ids:
        """Return what follows a closed turn: tool responses, then the assistant's opening.

        The template's own special tokens are ids by construction. The text of a result can forge
        none of them.

        Args:
            results: of each tool response the text and the number of images.

        Returns:
            Token ids, shape [T].
        """
        parts: list[tuple[str, bool]] = []  # (text, trusted)
        for i, (text, images) in enumerate(results):
            parts.append((self.between if i else self.head, True))
            parts.append((text, False))
            parts.append((_IMAGE * images, True))
        parts.append((self.tail, True))
        return self._encode(parts)

    def encode_policy(self, text: str) -> Ids:
        """Return the ids of a text that a policy or a scripted teacher wrote, shape [T].

        Added tokens are recognised.
        """
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Return the text of token ids, with special tokens visible."""
        text = self.tokenizer.decode(
            np.asarray(ids).tolist(),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return str(text)

    def trajectory(
        self,
        question: Question,
        tools: list[dict[str, Any]],
        system: str | None,
        turns: Sequence[str | Sequence[Observed]],
    ) -> Trajectory:
        """Return a scripted trajectory, for SFT.

        Args:
            question: what is asked.
            tools: schemas.
            system: the system message, if any.
            turns: the policy's texts, each from after the template's opening, and between them
                the tool results. Every text is closed by `<|im_end|>` here.

        Returns:
            A trajectory whose log-probabilities are 0, whose policy version is 0 and whose reward
            is None.

        Raises:
            ValueError: if the last turn is no text of the policy.
        """
        # SFT learns the policy's tokens; tool results at the end would teach nothing.
        if not turns or not isinstance(turns[-1], str):
            raise ValueError("a scripted trajectory ends with a text of the policy")
        segments = [self._scripted(turn) for turn in turns]
        last_turn = parse_turn(segments[-1].token_ids, self.tokens, self.decode)
        return Trajectory(
            question_id=question.id,
            rollout=0,
            prompt_ids=self.prompt(question.text, len(question.images), tools, system),
            segments=tuple(segments),
            end=EndReason.ANSWERED,
            answer=last_turn.answer_text,
        )

    def _scripted(self, turn: str | Sequence[Observed]) -> Segment:
        if isinstance(turn, str):
            ids = self.encode_policy(turn.removesuffix("<|im_end|>") + "<|im_end|>")
            return PolicySegment(ids, np.zeros(len(ids), np.float32), policy_version=0)
        ids = self.observation([(result.text, len(result.images)) for result in turn])
        return ObservationSegment(ids, images_of(turn))

    def _encode(self, parts: Sequence[tuple[str, bool]]) -> Ids:
        """Return the ids of joined parts, with added tokens recognised in trusted parts only.

        Plain text between two added tokens is tokenized in one piece, as the full tokenizer does,
        whoever wrote it: a tool's "done." and the template's newline may share a token.
        """
        vocabulary = self.tokenizer.get_added_vocab()
        # Longest first: a token may begin with another one.
        longest_first = sorted(vocabulary, key=len, reverse=True)
        pattern = re.compile("(" + "|".join(re.escape(token) for token in longest_first) + ")")
        ids: list[int] = []
        text = ""
        for part, trusted in parts:
            pieces = pattern.split(part) if trusted else [part]
            for piece in pieces:
                if trusted and piece in vocabulary:
                    ids += self.plain.encode(text, add_special_tokens=False).ids
                    ids.append(vocabulary[piece])
                    text = ""
                else:
                    text += piece
        ids += self.plain.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.int32)


def _around_tool_responses(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str, str]:
    """Return the template's text before, between and after tool responses.

    What comes before begins after the assistant's `<|im_end|>`.
    """
    # Two responses in a row show what the template puts between them.
    probe = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "!"},
        {"role": "tool", "content": _PROBE},
        {"role": "tool", "content": _PROBE},
    ]
    rendered = tokenizer.apply_chat_template(probe, add_generation_prompt=True, tokenize=False)
    before, between, tail = rendered.split(_PROBE)
    head = before[before.rindex("<|im_end|>") + len("<|im_end|>") :]
    return head, between, tail
