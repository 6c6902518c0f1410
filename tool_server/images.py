"""Decode untrusted images.

Every limit is checked on the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tool_server.image_parts import MAX_PARTS, has_too_many
from tool_server.tool import Pixels

if TYPE_CHECKING:
    from PIL import Image

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

MAX_ASPECT = 200
"""Long side to short side. Qwen's image processors raise above it."""

MAX_SCANS = 100
"""Scans of one JPEG.

Encoders write about ten. Each scan is a pass over all pixels: 2,000 scans of 31 bytes, in a file
of 156 kB that keeps every other limit, took 55 s to decode.
"""

START_OF_SCAN = b"\xff\xda"
"""The marker of a JPEG's scan."""
END_OF_JPEG = b"\xff\xd9"


class ImageError(Exception):
    """An image is refused.

    The message is one line: the limit that it exceeds, or why it cannot be read.
    """


class ImageLimits(BaseModel):
    """What is decoded.

    16 MPx are 48 MB of pixels. While decoding, a PNG or JPEG takes 150 MB, a WEBP 280 MB.

    GIF is allowed because pages and data sets of the web use it (of anything animated, the first
    frame counts). BMP, TIFF and the rest of Pillow's forty formats are left out: few data sets hold
    them, they convert without loss, and most of Pillow's security fixes are theirs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    formats: tuple[Literal["PNG", "JPEG", "WEBP", "GIF"], ...] = Field(
        ("PNG", "JPEG", "WEBP", "GIF"), min_length=1
    )
    # At most Pillow's own bound, above which it warns: `warnings.catch_warnings` is not safe in
    # threads.
    max_pixels: int = Field(16_000_000, ge=1, le=89_478_485)
    max_side: int = Field(16_384, ge=1, description="pixels")
    max_aspect: float = Field(MAX_ASPECT, ge=1, description="long side to short side")
    max_bytes: int = Field(20_000_000, ge=1, description="of the file")
    scale_above: int | None = Field(
        None,
        ge=1,
        description="pixels in all; a larger image is scaled down to so many. None: none is scaled",
    )


DEFAULT_LIMITS = ImageLimits()


def decode(source: Path | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Return the RGB pixels of an image, read-only.

    They are upright by EXIF, of an animation the first frame, on white where transparent, and
    scaled down as the limits say.

    Raises:
        ImageError: it exceeds a limit, or cannot be read.
    """
    from PIL import Image, ImageOps

    with _open(source, limits) as image:
        try:
            found, kept = image.size, fitted(*image.size, None, limits.scale_above)
            if kept != found:
                # A JPEG is then decoded at a half, a quarter or an eighth of its size. So a picture
                # of 7680x4320 that is scaled to 2 MPx takes a quarter of the time (0.15 s) and a
                # fifth of the memory (33 MB).
                image.draft("RGB", kept)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _rgb(image)
            if kept != found:
                lies = (rgb.width < rgb.height) != (found[0] < found[1])
                rgb = rgb.resize(kept[::-1] if lies else kept, Image.Resampling.LANCZOS)
            return np.asarray(rgb)
        except Exception as error:
            raise ImageError(f"cannot be read: {_first_line(error)}") from None


def check(source: Path | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Size:
    """Do the checks of `decode` without the decoding.

    A PNG's checksums are verified. A JPEG or WEBP that seems to be cut short is decoded, and so is
    every GIF, whose bytes do not tell.

    Returns:
        Width and height that the pixels would have, before EXIF puts them upright.

    Raises:
        ImageError: it exceeds a limit, or cannot be read.
    """
    data = _read(source, limits.max_bytes) if isinstance(source, Path) else source
    with _open(data, limits) as image:
        size = fitted(*image.size, None, limits.scale_above)
        if _seems_cut(image.format, data):
            decode(data, limits)
        try:
            image.verify()
        except Exception as error:
            raise ImageError(f"cannot be read: {_first_line(error)}") from None
        return size


def fit(pixels: Pixels, max_side: int | None, max_pixels: int | None) -> Pixels:
    """Return the pixels as they are if they keep both limits, else downscaled (Lanczos) to them.

    Args:
        pixels: shape [height, width, 3].
        max_side: pixels of a side; None: no limit.
        max_pixels: pixels in all; None: no limit.

    Returns:
        Pixels whose aspect is within `MAX_ASPECT`.
    """
    height, width = pixels.shape[:2]
    size = fitted(width, height, max_side, max_pixels)
    if size == (width, height):
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def fitted(
    width: int, height: int, max_side: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """Return (width, height) scaled down to both limits, or unchanged if they keep them.

    Args:
        width: pixels.
        height: pixels.
        max_side: pixels of a side; None: no limit.
        max_pixels: pixels in all; None: no limit.

    Returns:
        Width and height, each at least 1, in an aspect within `MAX_ASPECT`.
    """
    short, long = sorted((width, height))
    scale_of_side = (max_side or long) / long
    scale_of_pixels = math.sqrt((max_pixels or short * long) / (short * long))
    scale = min(1.0, scale_of_side, scale_of_pixels)
    if scale == 1.0:
        return width, height
    # 1e-9: no pixel is lost to floating point (0.29 * 100 is 28.999999999999996).
    short = max(1, math.floor(short * scale + 1e-9))
    long = math.floor(long * scale + 1e-9)
    # A rounded short side can break a limit (1024 x 5.12 the aspect, 40 x 0.1 the pixels). Then the
    # long side gives way.
    long = min(long, MAX_ASPECT * short, (max_pixels or long * short) // short)
    return (short, long) if width < height else (long, short)


def _open(source: Path | bytes, limits: ImageLimits) -> Image.Image:
    """Return the image with its header read, if it keeps the limits."""
    from PIL import Image, UnidentifiedImageError

    data = _read(source, limits.max_bytes) if isinstance(source, Path) else source
    if len(data) > limits.max_bytes:
        raise ImageError(f"is larger than {limits.max_bytes:,} bytes")
    if has_too_many(data):
        raise ImageError(f"has more than {MAX_PARTS:,} parts")
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats)
    except UnidentifiedImageError:
        raise ImageError(f"is not a readable {', '.join(limits.formats)} image") from None
    except Exception as error:
        # A header can raise nearly anything: ValueError, SyntaxError, struct.error,
        # DecompressionBombError ...
        raise ImageError(f"cannot be read: {_first_line(error)}") from None
    _check_size(*image.size, limits)
    # Within compressed data 0xFF is always followed by 0 or a restart marker, so this counts scans
    # (and those of thumbnails).
    if image.format in ("JPEG", "MPO") and data.count(START_OF_SCAN) > MAX_SCANS:
        raise ImageError(f"has more than {MAX_SCANS} scans")
    return image


def _seems_cut(form: str | None, data: bytes) -> bool:
    """Return whether the end of an image may be missing, by a look at its bytes."""
    if form in ("JPEG", "MPO"):
        # Previews inside of it have an end of their own, before the last scan.
        return data.rfind(END_OF_JPEG) < data.rfind(START_OF_SCAN)
    if form == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return form == "GIF"


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    size = f"is {width}x{height} pixels"
    if max(width, height) > limits.max_side:
        raise ImageError(f"{size}, the limit of a side is {limits.max_side:,}")
    if width * height > limits.max_pixels:
        raise ImageError(f"{size}, the limit is {limits.max_pixels:,} in all")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"{size}, the limit of long to short side is {limits.max_aspect:g}")


def _read(path: Path, limit: int) -> bytes:
    """Return at most `limit` + 1 bytes of a regular file.

    A device or a pipe could be read for ever.
    """
    try:
        if not path.is_file():
            raise ImageError("is not a file" if path.exists() else "is not there")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {_first_line(error)}") from None


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # convert() would show the hidden colours: black text on black
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    # `convert` would copy what is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
