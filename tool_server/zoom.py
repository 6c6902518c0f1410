"""`image_zoom_in`: the part of an image inside a box, cut from the original pixels at full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tool_server.tool import Output, ToolCall, ToolError, ToolKind, define

SCALE = 1000
"""Qwen3-VL's boxes are relative to the image: 0 to 1000 on both axes."""

MAX_ASPECT = 200
"""Qwen's image processors raise above it."""


def _box(value: Any) -> list[float]:
    """Four finite numbers, clamped to 0-1000. Strings, booleans and NaN are no coordinates; integers may be of any size."""
    numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != 4 or not all(isinstance(v, int) or math.isfinite(v) for v in value):
        raise PydanticCustomError("box", "expected 4 numbers [x1, y1, x2, y2] from 0 to 1000")
    return [float(min(max(v, 0), SCALE)) for v in value]


def _index(value: Any) -> int:
    """An integer from 0; 1.0 counts as 1, since JSON has one kind of number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value % 1 != 0:
        raise PydanticCustomError("index", "expected an integer from 0")
    return int(value)


class ZoomArguments(BaseModel):
    """The paper's signature; the descriptions follow Qwen3-VL's own zoom tool and are part of the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bbox_2d: Annotated[list[float], BeforeValidator(_box)] = Field(
        min_length=4, max_length=4, description="Region to zoom in on, as [x1, y1, x2, y2] from 0 to 1000 relative to the image"
    )
    label: str = Field(default="", description="Name of the object in the region")
    img_idx: Annotated[int, BeforeValidator(_index)] = Field(default=0, description="Index of the image, starting from 0")


class ZoomOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    min_side: int = Field(default=32, ge=1, description="pixels; a smaller box grows to this side (one merged patch of Qwen3-VL)")


def pixel_box(box: Sequence[float], width: int, height: int, min_side: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a box in 0-1000, half open, inside the image.

    Rounded outwards, then grown about its centre until each side has `min_side` pixels and neither is more than `MAX_ASPECT`
    times the other, as far as the image reaches. Raises ToolError for an empty box and for a sliver that cannot grow enough.
    """
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ToolError("bbox_2d is empty: needs x1 < x2 and y1 < y2")
    left, right = _grow(math.floor(x1 * width / SCALE), math.ceil(x2 * width / SCALE), width, min_side)
    top, bottom = _grow(math.floor(y1 * height / SCALE), math.ceil(y2 * height / SCALE), height, min_side)
    left, right = _grow(left, right, width, math.ceil((bottom - top) / MAX_ASPECT))
    top, bottom = _grow(top, bottom, height, math.ceil((right - left) / MAX_ASPECT))
    if max(right - left, bottom - top) > MAX_ASPECT * min(right - left, bottom - top):
        raise ToolError("bbox_2d is too long and thin")
    return left, top, right, bottom


def image_zoom_in(call: ToolCall, options: ZoomOptions) -> Output:
    """No text and the crop: a copy of the original pixels, not resized."""
    arguments, images = call.arguments, call.images
    if arguments.img_idx >= len(images):
        last = f"0 to {len(images) - 1}" if len(images) > 1 else "0"
        raise ToolError(f"img_idx: no such image, expected {last}" if images else "img_idx: there are no images")
    image = images[arguments.img_idx]
    left, top, right, bottom = pixel_box(arguments.bbox_2d, image.shape[1], image.shape[0], options.min_side)
    return "", (np.array(image[top:bottom, left:right], order="C"),)


def _grow(start: int, stop: int, limit: int, least: int) -> tuple[int, int]:
    """[start, stop) made at least `least` long about its centre, inside [0, limit)."""
    length = max(stop - start, min(least, limit))
    start = min(max((start + stop - length) // 2, 0), limit - length)
    return start, start + length


DESCRIPTION = "Zoom in on a region of an image by cropping it, given a bounding box and the label of an object."

IMAGE_ZOOM_IN = ToolKind(
    ZoomOptions, lambda name, options: define(name, DESCRIPTION, ZoomArguments, lambda call: image_zoom_in(call, options), pure=True)
)
