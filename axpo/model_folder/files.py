"""Check tokenizer and image processor of a model folder against its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from axpo import texts
from axpo.plain_files import NotPlain, inside_model
from axpo.tasks.task import one_line
from rollout_workers.chat import Chat
from rollout_workers.families import UnknownFamily
from rollout_workers.image_rule import FILES, ImageRule, ImagesConfig, image_rule

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
"""What a model folder may hold besides its weights and is needed to use it."""
# Of the image processor, and of the vision tower.
SIZES = (
    ("patch_size", "patch_size"),
    ("merge_size", "spatial_merge_size"),
    ("temporal_patch_size", "temporal_patch_size"),
)


def check_links(folder: Path) -> None:
    """Check that no file that a checkpoint copies is a link out of the folder.

    A checkpoint may be published, and a link of somebody else's folder may lead to any file. So
    they are not followed, and the checkpoint would lack the file.

    Raises:
        ValueError: one is.
    """
    for name in COPIED:
        try:
            inside_model(folder, name)
        except NotPlain as error:
            raise ValueError(
                f"{folder}/{name}: {error}; put the file itself there, because checkpoints copy it"
            ) from None


def load_chat(folder: Path) -> Chat:
    """Return the chat format of a folder.

    Raises:
        ValueError: there is no tokenizer, or it does not load, lacks a token or does not fit the
            model.
    """
    if not any(_has(folder, names) for names in TOKENIZER_FILES):
        expected = " or ".join(" and ".join(names) for names in TOKENIZER_FILES)
        raise ValueError(f"{folder}: no tokenizer; expected {expected}")
    try:
        return Chat.load(str(folder))
    except UnknownFamily:
        raise
    except Exception as error:  # of transformers: a file may be broken in any way
        raise ValueError(f"{folder}: the tokenizer does not load: {one_line(error)}") from None


def check_processor(folder: Path, images: ImagesConfig) -> ImageRule:
    """Check that the image processor cuts images as the vision tower reads them.

    Args:
        folder: of the model.
        images: the recipe's limits.

    Returns:
        How many tokens an image takes.

    Raises:
        ValueError: there is none, it does not load, or its patches have another size.
    """
    from transformers import AutoImageProcessor

    for name in FILES:
        _check_json(folder / name)
    try:
        rule = image_rule(folder, images)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{folder}: the image processor's sizes: {one_line(error)}") from None
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
    except Exception as error:  # of transformers: a file may be broken in any way
        raise ValueError(f"{folder}: the processor does not load: {one_line(error)}") from None
    vision = model_config(folder).vision_config
    for name, of_model in SIZES:
        found, expected = getattr(processor, name, None), getattr(vision, of_model)
        if found != expected:
            raise ValueError(
                f"{folder}: the image processor's {name} is {found}; expected {expected}, which is "
                f"vision_config.{of_model} of config.json"
            )
    return rule


def model_config(folder: Path) -> Any:
    """Return the configuration of a folder as transformers reads it.

    Raises:
        ValueError: transformers does not take it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # of transformers: any field may be wrong
        raise ValueError(f"{folder}/config.json: {one_line(error)}") from None


def vocabulary_size(folder: Path) -> int:
    """Return how many ids the model of a folder has logits for."""
    return int(model_config(folder).get_text_config().vocab_size)


def _check_json(file: Path) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {texts.one_line(str(error))}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, found {type(content).__name__}")


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)
