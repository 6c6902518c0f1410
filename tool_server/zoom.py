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
from tool_server.tool import Output, Shown, Tool, ToolCall, ToolError, ToolKind, tool_kinds

SCALE = 1000
"""Qwen3-VL's boxes are relative to the image: 0 to 1000 on both axes."""

BEYOND = 50
"""Above `SCALE`; numbers up to there are taken for its end, larger ones for pixels."""

EXPECTED = "expected 0 to 1000 relative to the image: [0, 0, 1000, 1000] is all of it"

# Part of the prompt.
DESCRIPTION = (
    "Zoom in on a region of an image by cropping it, given a bounding box and the label of an "
    "object."
)


def _box(value: Any) -> list[float]:
    """Return four finite numbers, clamped to 0-1000.

    Strings, booleans and NaN are no coordinates. Integers may be of any size. Numbers of another
    scale are refused: a crop of the wrong place would not tell the policy what is wrong.
    """
    is_box = isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_finite, value))
    if not is_box:
        raise PydanticCustomError("box", "expected 4 numbers [x1, y1, x2, y2] from 0 to 1000")
    if 0 < max(value) <= 1:
        raise PydanticCustomError("box", f"these numbers are fractions of 1; {EXPECTED}")
    if max(value) > SCALE + BEYOND:
        raise PydanticCustomError("box", f"these numbers are pixels; {EXPECTED}")
    return [float(min(max(number, 0), SCALE)) for number in value]


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


class ZoomArguments(BaseModel):
    """The paper's signature.

    The descriptions follow Qwen3-VL's own zoom tool and are part of the prompt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bbox_2d: Annotated[list[float], BeforeValidator(_box)] = Field(
        min_length=4,
        max_length=4,
        description=(
            "Region to zoom in on, as [x1, y1, x2, y2] from 0 to 1000 relative to the image"
        ),
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
        description="pixels in all; a larger crop is downscaled. Default: the tool's "
        "max_image_pixels",
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

    @property
    def max_aspect(self) -> float:
        """The aspect up to which a crop keeps `min_side` when it is downscaled to the maxima."""
        by_side = (self.max_side or math.inf) / self.min_side
        by_pixels = (self.max_pixels or math.inf) / self.min_side**2
        return min(MAX_ASPECT, by_side, by_pixels)

    def open(self, name: str) -> Tool:
        """Return the tool. It needs nothing of the machine."""

        def run(call: ToolCall) -> Output:
            return image_zoom_in(call, self)

        return define(name, *self.shown(), run, pure=True)

    def shown(self) -> Shown:
        """Return what the policy reads."""
        return Shown(DESCRIPTION, ZoomArguments)


def pixel_box(
    box: Sequence[float], width: int, height: int, options: ImageZoomIn
) -> tuple[int, int, int, int]:
    """Return a box in pixels, inside the image.

    The box is rounded outwards. Then it grows about its centre, as far as the image reaches, until
    each side has `min_side` pixels and neither side is more than `max_aspect` times the other.

    Args:
        box: [x1, y1, x2, y2] from 0 to 1000, relative to the image.
        width: of the image, in pixels.
        height: of the image, in pixels.
        options: the limits of the crop.

    Returns:
        (left, top, right, bottom) in pixels, half open.

    Raises:
        ToolError: the box is empty, or a sliver that cannot grow to `MAX_ASPECT`.
    """
    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ToolError("bbox_2d is empty: needs x1 < x2 and y1 < y2")
    # Rounded outwards, so that no pixel that the box touches is lost.
    left, right = math.floor(x1 * width / SCALE), math.ceil(x2 * width / SCALE)
    top, bottom = math.floor(y1 * height / SCALE), math.ceil(y2 * height / SCALE)
    left, right = _grow(left, right, width, options.min_side)
    top, bottom = _grow(top, bottom, height, options.min_side)
    # Then the shorter side, until the aspect is within `max_aspect`.
    left, right = _grow(left, right, width, math.ceil((bottom - top) / options.max_aspect))
    top, bottom = _grow(top, bottom, height, math.ceil((right - left) / options.max_aspect))
    if max(right - left, bottom - top) > MAX_ASPECT * min(right - left, bottom - top):
        raise ToolError("bbox_2d is too long and thin")
    return left, top, right, bottom


def image_zoom_in(call: ToolCall, options: ImageZoomIn) -> Output:
    """Return the crop, without text.

    It is a copy of the original pixels, resized only if they exceed a maximum of the recipe.

    Raises:
        ToolError: there is no such image, or the box cannot be cut out.
    """
    box, index = call.arguments.bbox_2d, call.arguments.img_idx
    if index >= len(call.images):
        raise ToolError(f"img_idx: {_no_such_image(len(call.images))}")
    image = call.images[index]
    height, width = image.shape[:2]
    left, top, right, bottom = pixel_box(box, width, height, options)
    # A copy: whoever changes the crop must not change the image.
    crop = np.array(image[top:bottom, left:right], order="C")
    return "", (fit(crop, options.max_side, options.max_pixels),)


def _no_such_image(images: int) -> str:
    if images == 0:
        return "there are no images"
    if images == 1:
        return "no such image, expected 0"
    return f"no such image, expected 0 to {images - 1}"


def _grow(start: int, stop: int, limit: int, least: int) -> tuple[int, int]:
    """Return [start, stop) made at least `least` long about its centre, inside [0, limit)."""
    length = max(stop - start, min(least, limit))
    start = min(max((start + stop - length) // 2, 0), limit - length)
    return start, start + length
