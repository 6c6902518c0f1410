"""`image_zoom_in`: the part of an image inside a box, cut from the original pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tool_server.arguments import define, integer
from tool_server.images import MAX_ASPECT, fit
from tool_server.tool import Output, Tool, ToolCall, ToolError, ToolKind, tool_kinds

DESCRIPTION = (
    "Zoom in on a region of an image by cropping it, given a bounding box and the label of an "
    "object."
)
SCALE = 1000
"""Qwen3-VL's boxes are relative to the image: 0 to 1000 on both axes."""


def _box(value: Any) -> list[float]:
    """Four finite numbers, clamped to 0-1000. Strings, booleans and NaN are no coordinates; integers may be of any size."""
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in value
    )
    if (
        not numbers
        or len(value) != 4
        or not all(isinstance(v, int) or math.isfinite(v) for v in value)
    ):
        raise PydanticCustomError("box", "expected 4 numbers [x1, y1, x2, y2] from 0 to 1000")
    return [float(min(max(v, 0), SCALE)) for v in value]


class ZoomArguments(BaseModel):
    """The paper's signature; the descriptions follow Qwen3-VL's own zoom tool and are part of the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bbox_2d: Annotated[list[float], BeforeValidator(_box)] = Field(
        min_length=4,
        max_length=4,
        description="Region to zoom in on, as [x1, y1, x2, y2] from 0 to 1000 relative to the image",
    )
    label: str = Field(default="", description="Name of the object in the region")
    img_idx: Annotated[int, integer(0)] = Field(
        default=0, description="Index of the image, starting from 0"
    )


@tool_kinds.register("image_zoom_in")
class ImageZoomIn(ToolKind):
    """Cut out the part of an image inside a box, from the original pixels."""

    min_side: int = Field(
        default=32,
        ge=1,
        description="pixels; a smaller box grows to this side (one merged patch of Qwen3-VL)",
    )
    max_side: int | None = Field(
        default=None,
        ge=1,
        description="pixels; a larger crop is downscaled. Default: never resized",
    )
    max_pixels: int | None = Field(
        default=None,
        ge=1,
        description="pixels in all; a larger crop is downscaled. Default: never resized",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ImageZoomIn:
        if self.max_side is not None and self.max_side < self.min_side:
            raise ValueError(f"max_side {self.max_side} is below min_side {self.min_side}")
        if self.max_pixels is not None and self.max_pixels < self.min_side**2:
            raise ValueError(
                f"max_pixels {self.max_pixels} is below the square of min_side {self.min_side}"
            )
        return self

    def open(self, name: str) -> Tool:
        """Return the tool. It needs nothing of the machine."""

        def run(call: ToolCall) -> Output:
            return image_zoom_in(call, self)

        return define(name, DESCRIPTION, ZoomArguments, run, pure=True)

    @property
    def max_aspect(self) -> float:
        """Up to it a crop that is downscaled to the maxima keeps `min_side`."""
        by_side = (self.max_side or math.inf) / self.min_side
        by_pixels = (self.max_pixels or math.inf) / self.min_side**2
        return min(MAX_ASPECT, by_side, by_pixels)


def pixel_box(
    box: Sequence[float], width: int, height: int, options: ImageZoomIn
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a box in 0-1000, half open, inside the image.

    Rounded outwards, then grown about its centre until each side has `min_side` pixels and neither is more than `max_aspect`
    times the other, as far as the image reaches. Raises ToolError for an empty box and for a sliver that cannot grow to `MAX_ASPECT`.
    """
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ToolError("bbox_2d is empty: needs x1 < x2 and y1 < y2")
    left, right = _grow(
        math.floor(x1 * width / SCALE), math.ceil(x2 * width / SCALE), width, options.min_side
    )
    top, bottom = _grow(
        math.floor(y1 * height / SCALE), math.ceil(y2 * height / SCALE), height, options.min_side
    )
    left, right = _grow(left, right, width, math.ceil((bottom - top) / options.max_aspect))
    top, bottom = _grow(top, bottom, height, math.ceil((right - left) / options.max_aspect))
    if max(right - left, bottom - top) > MAX_ASPECT * min(right - left, bottom - top):
        raise ToolError("bbox_2d is too long and thin")
    return left, top, right, bottom


def image_zoom_in(call: ToolCall, options: ImageZoomIn) -> Output:
    """No text and the crop: the original pixels, copied; resized only where they exceed a maximum of the recipe."""
    arguments, images = call.arguments, call.images
    if arguments.img_idx >= len(images):
        last = f"0 to {len(images) - 1}" if len(images) > 1 else "0"
        raise ToolError(
            f"img_idx: no such image, expected {last}" if images else "img_idx: there are no images"
        )
    image = images[arguments.img_idx]
    left, top, right, bottom = pixel_box(arguments.bbox_2d, image.shape[1], image.shape[0], options)
    crop = np.array(image[top:bottom, left:right], order="C")
    return "", (fit(crop, options.max_side, options.max_pixels),)


def _grow(start: int, stop: int, limit: int, least: int) -> tuple[int, int]:
    """[start, stop) made at least `least` long about its centre, inside [0, limit)."""
    length = max(stop - start, min(least, limit))
    start = min(max((start + stop - length) // 2, 0), limit - length)
    return start, start + length
