"""How many tokens an image takes.

The rule is that of Qwen's image processors (`smart_resize` of transformers, which vLLM calls too):
an image is scaled to whole tokens of `side` x `side` pixels, between two numbers of pixels. Here it
is a few lines without transformers, because `axpo check` counts the images of every row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_ASPECT = 200
"""Long side to short side. The processors raise above it."""

FILES = ("processor_config.json", "preprocessor_config.json")
"""Where a model folder may describe its image processor, in the order of transformers."""

DEFAULTS = {"patch_size": 14, "merge_size": 2}
DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""What transformers takes if a folder does not say."""


class ImagesConfig(BaseModel):
    """How large the model sees images: one setting for engine, learner and tool results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_pixels: int | None = Field(
        None,
        ge=1,
        description="pixels in all; the model sees a smaller image scaled up. "
        "None: the limit of the model folder",
    )
    max_pixels: int | None = Field(
        None,
        ge=1,
        description="pixels in all; the model sees a larger image scaled down. "
        "None: the limit of the model folder",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ImagesConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels={self.min_pixels}: must be at most max_pixels={self.max_pixels}"
            )
        return self

    @property
    def is_default(self) -> bool:
        """Return whether the model folder decides alone."""
        return self.min_pixels is None and self.max_pixels is None


@dataclass(frozen=True)
class ImageRule:
    """The rule of one model folder, with the limits of a recipe."""

    side: int  # pixels of a token's side
    min_pixels: int
    max_pixels: int

    @property
    def size(self) -> dict[str, int]:
        """Return the limits as transformers and vLLM call them."""
        return {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}

    @property
    def most_tokens(self) -> int:
        """Return the tokens of the largest image that is no long strip."""
        return max(1, self.max_pixels // self.side**2)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return how many tokens an image is wide and high.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.

        Raises:
            ValueError: the image is longer than `MAX_ASPECT` times its short side.
        """
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"{width}x{height} pixels: more than {MAX_ASPECT} times as long")
        # `round` rounds halves to even, as transformers does.
        wide, high = round(width / self.side), round(height / self.side)
        area = wide * high * self.side**2
        if area > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels)
            wide = max(1, math.floor(width / scale / self.side))
            high = max(1, math.floor(height / scale / self.side))
        elif area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            wide = math.ceil(width * scale / self.side)
            high = math.ceil(height * scale / self.side)
        return wide, high

    def tokens(self, width: int, height: int) -> int:
        """Return the tokens of an image; see `grid`."""
        wide, high = self.grid(width, height)
        return wide * high


def image_rule(folder: str | Path, config: ImagesConfig = ImagesConfig()) -> ImageRule:
    """Return the rule of a model folder.

    Args:
        folder: of the model.
        config: the recipe's `images`; what it leaves open is the folder's.

    Raises:
        ValueError: the folder describes no image processor, or its limits contradict the recipe's.
    """
    processor = _image_processor(Path(folder))
    size = DEFAULT_SIZE | (processor.get("size") or {})
    # Older folders name the limits so; they win over `size`.
    least = processor.get("min_pixels") or size["shortest_edge"]
    most = processor.get("max_pixels") or size["longest_edge"]
    least, most = config.min_pixels or least, config.max_pixels or most
    if least > most:
        raise ValueError(
            f"images: min_pixels {least} is above max_pixels {most} "
            f"(what the recipe leaves open is {folder}'s)"
        )
    numbers = DEFAULTS | {name: processor[name] for name in DEFAULTS if name in processor}
    return ImageRule(numbers["patch_size"] * numbers["merge_size"], least, most)


def _image_processor(folder: Path) -> Mapping[str, Any]:
    for name in FILES:
        file = folder / name
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        # Newer folders keep all processors in one file.
        processor: Mapping[str, Any] | None = found.get("image_processor")
        if processor is None and name == FILES[-1] and found:
            processor = found
        if processor is not None:
            return processor
    raise ValueError(f"{folder}: no image processor (expected one of {', '.join(FILES)})")
