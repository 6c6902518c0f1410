"""What differs between the model families that can be trained: one object each.

    architecture   what the model computes: its class in transformers, the rotary positions
                   of images (how many tokens an image takes: `image_rule.py`)
    family         how it talks: how a turn opens, how tools and their results stand in the prompt,
                   which special tokens must exist

`family_of` finds the family of a model folder, and refuses a folder of any other. Nobody else
looks at a model's name or type. All three families write a call in the same (Hermes) form, and end
a turn with `<|im_end|>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.quick_imports import quick_imports

Grid: TypeAlias = tuple[int, int]
"""Height and width of an image in tokens."""
RotaryRule: TypeAlias = Callable[[int, Sequence[int], Sequence[Grid]], NDArray[np.int64]]
"""Length of a row, first token and grid of each image -> positions, shape [3, length]."""

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""An image in a prompt. Engine and learner repeat the placeholder, once a token of the image."""
TURN_END = "<|im_end|>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
# What a prompt and a turn need in every family.
_CHAT_TOKENS = (
    *("<|im_start|>", TURN_END, CALL_OPEN, CALL_CLOSE),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments"
    " within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class UnknownFamily(ValueError):
    """A model folder that is of no family that works; one line that says why."""


def still_image_positions(
    length: int, image_starts: Sequence[int], grids: Sequence[Grid]
) -> NDArray[np.int64]:
    """Return rotary positions as `get_rope_index` of transformers does for still images.

    Text counts up on all three axes. An image of h x w tokens at position p takes time p, heights
    p..p+h-1 and widths p..p+w-1; the text after it goes on at p + max(h, w).

    Args:
        length: tokens of the row, images expanded.
        image_starts: where each image's tokens begin.
        grids: height and width in tokens of each image.

    Returns:
        Time, height and width positions, shape [3, length].
    """
    out = np.zeros((3, length), np.int64)
    # `done` counts tokens, `position` what the next one gets: an image takes more tokens than
    # positions.
    done, position = 0, 0
    for start, (height, width) in zip(image_starts, grids, strict=True):
        out[:, done:start] = np.arange(start - done) + position
        position += start - done
        done = start + height * width
        out[0, start:done] = position
        out[1, start:done] = position + np.repeat(np.arange(height), width)
        out[2, start:done] = position + np.tile(np.arange(width), height)
        position += max(height, width)
    out[:, done:] = np.arange(length - done) + position
    return out


@dataclass(frozen=True)
class Architecture:
    """What a model computes, by the `model_type` of its config.json."""

    model_type: str
    model_class: str
    """In transformers. Its `model` has a `visual` and a `language_model`."""
    rotary_positions: RotaryRule = still_image_positions
    older_names: tuple[tuple[str, str], ...] = ()
    """How weights are named in folders of older transformers: prefix there, prefix now."""

    def parameter_name(self, name: str) -> str:
        """Return the name that a weight of a model folder has in the model."""
        for older, now in self.older_names:
            if name.startswith(older):
                return now + name.removeprefix(older)
        return name


@dataclass(frozen=True)
class ModelFamily:
    """How a model talks."""

    name: str
    architecture: Architecture
    opening: str
    """What the template writes where the policy's turn begins."""
    required: tuple[str, ...] = _CHAT_TOKENS
    """Tokens that the tokenizer must have as one id each."""
    template_shows_tools: bool = True
    """Whether the chat template renders tools and tool results; if not, `system_with_tools` and
    `tool_responses` write them into the texts of system and user."""

    @property
    def opens_thinking(self) -> bool:
        """Whether a turn begins inside thinking. If not, thinking is what `<think>` encloses."""
        return self.opening.endswith(f"{THINK_OPEN}\n")

    def system_with_tools(self, system: str, tools: Sequence[Mapping[str, Any]]) -> str:
        """Return a system text with the tools in it, as Qwen2.5 and Qwen3 were trained on them."""
        lines = [f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools]
        block = f"{_TOOLS_BEFORE}{''.join(lines)}{_TOOLS_AFTER}"
        return f"{system}\n\n{block}" if system else block

    def tool_responses(self, contents: Sequence[str]) -> str:
        """Return the user's text that holds the results of the calls of one turn."""
        return "\n".join(f"<tool_response>\n{content}\n</tool_response>" for content in contents)

    def call_text(self, name: str, arguments: Mapping[str, Any] | str) -> str:
        """Return a call as the policy writes it; arguments that are a text are JSON already."""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return f'{CALL_OPEN}\n{{"name": "{name}", "arguments": {arguments}}}\n{CALL_CLOSE}'

    def assistant_text(
        self, content: str, calls: Sequence[str] = (), thought: str | None = None
    ) -> str:
        """Return a structured message of the assistant as the last turn that a template renders.

        It is what the policy writes after the opening, without the end of the turn.

        Args:
            content: the text beside calls and thought. If there is no thought, it may begin with
                one that ends in `</think>`.
            calls: each as `call_text` gives it.
            thought: `reasoning_content`. A family that does not open turns inside thinking has no
                place for it: its template leaves it out, and so does this.
        """
        text = content
        if self.opens_thinking:
            if thought is None:
                thought, content = split_thought(content)
            text = thought.strip("\n") + f"\n{THINK_CLOSE}\n\n" + content.lstrip("\n")
        for number, call in enumerate(calls):
            # The template puts a line break before a call that something precedes.
            text += f"\n{call}" if content or number else call
        return text

    def turn_text(self, written: str) -> str:
        """Return what the policy writes after the opening, of a turn that a task or row wrote.

        Such a turn may think before it answers. A family that opens turns inside thinking needs
        no `<think>` there, the others need one.
        """
        if self.opens_thinking:
            return written.removeprefix(THINK_OPEN).removeprefix("\n")
        closes = written.find(THINK_CLOSE)
        if closes < 0 or THINK_OPEN in written[:closes]:
            return written
        return f"{THINK_OPEN}\n{written}"


QWEN3_VL = Architecture("qwen3_vl", "Qwen3VLForConditionalGeneration")
QWEN2_5_VL = Architecture(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    older_names=(
        ("visual.", "model.visual."),
        ("model.embed_tokens.", "model.language_model.embed_tokens."),
        ("model.layers.", "model.language_model.layers."),
        ("model.norm.", "model.language_model.norm."),
    ),
)

FAMILIES = (
    ModelFamily(
        name="Qwen3-VL Thinking",
        architecture=QWEN3_VL,
        opening="<|im_start|>assistant\n<think>\n",
        required=(*_CHAT_TOKENS, THINK_OPEN, THINK_CLOSE),
    ),
    ModelFamily(
        name="Qwen3-VL Instruct",
        architecture=QWEN3_VL,
        opening="<|im_start|>assistant\n",
    ),
    # Its own template knows no tools, but its language model was trained on them as Qwen2.5.
    ModelFamily(
        name="Qwen2.5-VL",
        architecture=QWEN2_5_VL,
        opening="<|im_start|>assistant\n",
        template_shows_tools=False,
    ),
)


def split_thought(content: str) -> tuple[str, str]:
    """Return the thought at the beginning of a message's content, and the rest.

    A thought ends in `</think>` and may begin with `<think>`. Without one it is empty.
    """
    if THINK_CLOSE not in content:
        return "", content
    parts = content.split(THINK_CLOSE)
    # As the template does: what stands before the last `<think>`, and between two `</think>`, goes.
    thought = parts[0].rstrip("\n").split(THINK_OPEN)[-1].lstrip("\n")
    return thought, parts[-1].lstrip("\n")


def what_works() -> str:
    """Return the families for a message: "qwen3_vl (Qwen3-VL Thinking), ..."."""
    return ", ".join(f"{family.architecture.model_type} ({family.name})" for family in FAMILIES)


def architecture_of(config: Mapping[str, Any], where: str = "config.json") -> Architecture:
    """Return the architecture of a model from its configuration.

    Args:
        config: the content of config.json.
        where: what a message names.

    Raises:
        UnknownFamily: its `model_type` is none that works, a section of it is no object, or it
            attends to a sliding window.
    """
    for name in ("text_config", "vision_config"):
        section = config.get(name, {})
        if not isinstance(section, Mapping):
            raise UnknownFamily(f"{where}: {name} is {section!r}; expected an object")
    model_type = config.get("model_type")
    for family in FAMILIES:
        if family.architecture.model_type == model_type:
            break
    else:
        raise UnknownFamily(f"{where}: model_type {model_type!r}; what works is {what_works()}")
    # The learner's attention knows no windows in the language model.
    if text_config(config).get("use_sliding_window"):
        raise UnknownFamily(f"{where}: use_sliding_window true; expected false")
    return family.architecture


def family_of(folder: str | Path) -> ModelFamily:
    """Return the family of a model folder, from its config.json and its chat template.

    Raises:
        UnknownFamily: no family has its `model_type`, or no family of that type opens a turn as
            its template does, or the folder lacks a config.json or a template.
    """
    architecture = architecture_of(read_config(folder), f"{folder}/config.json")
    rendered = _render(folder, chat_template(folder), [{"role": "user", "content": "?"}])
    opening = rendered[rendered.rfind("<|im_start|>") :]
    candidates = [family for family in FAMILIES if family.architecture is architecture]
    for family in candidates:
        if family.opening == opening:
            return family
    expected = " or ".join(f"{family.opening!r} ({family.name})" for family in candidates)
    raise UnknownFamily(
        f"{folder}: the chat template opens an assistant's turn with {opening!r}; "
        f"expected {expected}"
    )


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the config.json of a model folder.

    Raises:
        UnknownFamily: there is none, or it cannot be read.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UnknownFamily(f"{file}: no such file; expected a model folder of Hugging Face")
    return _read(file)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json says of the language model; older models say it at the top level."""
    return {**config, **config.get("text_config", {})}


def chat_template(folder: str | Path) -> str:
    """Return the chat template of a model folder, from whichever file has it.

    Raises:
        UnknownFamily: there is none.
    """
    folder = Path(folder)
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    names = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
    for name in names:
        file = folder / name
        template = _read(file).get("chat_template") if file.is_file() else None
        # Older folders name several templates.
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        if template:
            return str(template)
    raise UnknownFamily(
        f"{folder}: no chat template; expected a chat_template.jinja, or `chat_template` in "
        f"{' or '.join(names[:2])}"
    )


def _render(folder: str | Path, template: str, messages: list[dict[str, Any]]) -> str:
    from jinja2 import TemplateError

    with quick_imports():
        from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UnknownFamily(f"{folder}: the chat template does not render: {error}") from None
    return str(rendered[0])


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownFamily(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise UnknownFamily(f"{file}: expected an object, found {type(value).__name__}")
    return value
