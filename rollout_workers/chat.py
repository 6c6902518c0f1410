"""The model's chat format as token ids: prompts, observations and scripted trajectories.

Text becomes ids once, and nothing is rendered again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from axpo.limited.interrupt import TooSlow, interrupted_after
from axpo.texts import clean
from rollout_workers.families import (
    IMAGE,
    TURN_END,
    ModelFamily,
    UnknownFamily,
    chat_template,
    family_of,
    read_config,
)
from rollout_workers.parser import parse_turn
from rollout_workers.special_tokens import SpecialTokens, special_tokens
from rollout_workers.tokenizer import load_tokenizer
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

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
_THREAD = ThreadPoolExecutor(1, "chat")
"""Tokenizing and parsing happen here, off the engine's event loop.

One thread: Hugging Face's tokenizers are not to be shared.
"""
# A private-use character: it marks where a tool's text stands in the rendered template.
_PROBE = "\ue000"
RENDER_S = 20.0
"""Seconds in which a template must have made a prompt; usual ones take milliseconds."""
_PRIVATE_USE = [chr(code) for code in range(0xE000, 0xF900)]


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

    family: ModelFamily
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

        Raises:
            UnknownFamily: the folder is of no family that works, or its tokenizer lacks a token.
        """
        from tokenizers import Tokenizer

        family = family_of(model)
        tokenizer = load_tokenizer(model)
        tokenizer.chat_template = chat_template(model)
        try:
            tokens = special_tokens(family, tokenizer.get_vocab(), read_config(model))
        except UnknownFamily as error:
            raise UnknownFamily(f"{model}: {error}") from None
        # The tokenizer's own JSON without its added tokens is the tokenizer of untrusted text.
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
        plain["added_tokens"] = []
        head, between, tail = _around_tool_responses(tokenizer, family)
        return cls(
            family=family,
            tokenizer=tokenizer,
            plain=Tokenizer.from_str(json.dumps(plain)),
            tokens=tokens,
            head=head,
            between=between,
            tail=tail,
        )

    def prompt(
        self, text: str, images: Sequence[int], tools: list[dict[str, Any]], system: str | None
    ) -> Ids:
        """Return the prompt of a question, up to and including the assistant's opening.

        The template's own special tokens are recognised. Those that the texts of question, system
        and tools spell are text, as in a tool's result.

        Args:
            text: of the question.
            images: of each the character of the text before which it stands, in order. Each is
                one `<|image_pad|>`.
            tools: schemas, which go into the system message.
            system: the system message, if any.

        Returns:
            Token ids, shape [P].
        """
        mark = _unused_mark(json.dumps([text, tools, system], ensure_ascii=False))
        content = [self._part(piece, mark) for piece in _pieces(text, images)]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            system = self._guard(system, mark)
        guarded = [self._guard(tool, mark) for tool in tools]
        if tools and not self.family.template_shows_tools:
            system = self.family.system_with_tools(self._default_system(system), guarded)
            guarded = []
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self._encode(_rendered(self.tokenizer, messages, guarded), mark)

    def observation(self, results: Sequence[tuple[str, int]]) -> Ids:
        """Return what follows a closed turn: tool responses, then the assistant's opening.

        The template's own special tokens are ids by construction. The text of a result can forge
        none of them.

        Args:
            results: of each tool response the text and the number of images.

        Returns:
            Token ids, shape [T].
        """
        return self.shown([(text, (len(text),) * images) for text, images in results])

    def shown(self, results: Sequence[tuple[str, Sequence[int]]]) -> Ids:
        """Return what `observation` does, for results with images anywhere in their text.

        Args:
            results: of each tool response the text, and of each of its images the character of the
                text before which it stands, in order.

        Returns:
            Token ids, shape [T].
        """
        mark = _unused_mark("".join(text for text, _ in results))
        contents = [self._content(text, images, mark) for text, images in results]
        return self._encode(self.head + self.between.join(contents) + self.tail, mark)

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
            prompt_ids=self.prompt(question.text, question.places, tools, system),
            segments=tuple(segments),
            end=EndReason.ANSWERED,
            answer=last_turn.answer_text,
        )

    def _scripted(self, turn: str | Sequence[Observed]) -> Segment:
        if isinstance(turn, str):
            text = self.family.turn_text(turn.removesuffix(TURN_END)) + TURN_END
            ids = self.encode_policy(text)
            return PolicySegment(ids, np.zeros(len(ids), np.float32), policy_version=0)
        ids = self.observation([(result.text, len(result.images)) for result in turn])
        return ObservationSegment(ids, images_of(turn))

    def _part(self, text: str | None, mark: str) -> dict[str, str]:
        """Return a part of a message for the template; None: an image."""
        if text is None:
            return {"type": "image"}
        return {"type": "text", "text": self._guard(text, mark)}

    def _content(self, text: str, images: Sequence[int], mark: str) -> str:
        pieces = _pieces(text, images)
        return "".join(IMAGE if piece is None else self._guard(piece, mark) for piece in pieces)

    def _default_system(self, system: str | None) -> str:
        """Return the system text, or the one that the template writes if there is none."""
        if system is not None:
            return system
        rendered = _rendered(self.tokenizer, [{"role": "user", "content": "?"}])
        found = re.match(f"<\\|im_start\\|>system\n(.*?){re.escape(TURN_END)}", rendered, re.DOTALL)
        return found[1] if found else ""

    def _guard(self, value: Any, mark: str) -> Any:
        """Return a value whose texts hold no added token: a mark breaks each one up.

        The mark follows every character with which an added token begins, so that none can arise
        from two texts side by side either. `_encode` takes the marks away again.
        """
        if isinstance(value, str):
            return self._first_characters.sub(lambda match: match[0] + mark, value)
        if isinstance(value, Mapping):
            pairs = value.items()
            return {self._guard(key, mark): self._guard(entry, mark) for key, entry in pairs}
        if isinstance(value, list | tuple):
            return [self._guard(entry, mark) for entry in value]
        return value

    @cached_property
    def _first_characters(self) -> re.Pattern[str]:
        first = {text[0] for text in self.tokenizer.get_added_vocab()}
        return re.compile("[" + re.escape("".join(sorted(first))) + "]")

    @cached_property
    def _added(self) -> tuple[dict[str, int], re.Pattern[str]]:
        """The added tokens' ids, and a pattern that finds them."""
        vocabulary: dict[str, int] = self.tokenizer.get_added_vocab()
        # Longest first: a token may begin with another one.
        longest_first = sorted(vocabulary, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in longest_first)
        return vocabulary, re.compile(f"({pattern})")

    def _encode(self, rendered: str, mark: str) -> Ids:
        """Return the ids of a rendered text; what is marked is text, not an added token.

        Plain text between two added tokens is tokenized in one piece, as the full tokenizer does,
        whoever wrote it: a tool's "done." and the template's newline may share a token. Half a
        surrogate pair becomes U+FFFD: questions and rows with one are refused before, but the
        tokenizer must not raise whatever else holds one, the description of a tool for example.
        """
        vocabulary, pattern = self._added
        ids: list[int] = []
        for piece in pattern.split(rendered):
            if piece in vocabulary:
                ids.append(vocabulary[piece])
            else:
                text = clean(piece.replace(mark, ""))
                ids += self.plain.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.int32)


def _pieces(text: str, images: Sequence[int]) -> list[str | None]:
    """Return a text in pieces, with None for each image where it stands."""
    pieces: list[str | None] = []
    done = 0
    for place in images:
        if place > done:
            pieces.append(text[done:place])
        pieces.append(None)
        done = place
    # Without an image in its midst the text is one piece, even if it is empty.
    if done < len(text) or not done:
        pieces.append(text[done:])
    return pieces


def _unused_mark(texts: str) -> str:
    """Return a character that the texts do not contain."""
    return next(character for character in _PRIVATE_USE if character not in texts)


def _rendered(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return what the template makes of messages.

    Raises:
        UnknownFamily: it takes too long: a template is a program of whoever made the folder.
    """
    try:
        with interrupted_after(RENDER_S):
            text = tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
    except TooSlow:
        raise UnknownFamily(f"the chat template takes longer than {RENDER_S:g} s") from None
    return str(text)


def _around_tool_responses(
    tokenizer: PreTrainedTokenizerFast, family: ModelFamily
) -> tuple[str, str, str]:
    """Return the template's text before, between and after tool responses.

    What comes before begins after the assistant's `<|im_end|>`.
    """
    # Two responses in a row show what the template puts between them.
    probe: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "!"},
    ]
    if family.template_shows_tools:
        probe += [{"role": "tool", "content": _PROBE}] * 2
    else:
        probe.append({"role": "user", "content": family.tool_responses([_PROBE] * 2)})
    before, between, tail = _rendered(tokenizer, probe).split(_PROBE)
    head = before[before.rindex(TURN_END) + len(TURN_END) :]
    return head, between, tail
