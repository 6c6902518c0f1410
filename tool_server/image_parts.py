"""Count the parts of an image file, each of which costs Pillow a turn of a loop in Python.

A file of 20 MB may have millions of empty ones, and then takes 5 to 15 s to open.
"""

from __future__ import annotations

MAX_PARTS = 100_000
"""Encoders write one part for some thousand bytes; this many cost 0.3 s."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
GIF = (b"GIF87a", b"GIF89a")

_START_OF_SCAN = 0xDA
_ALONE = (0x01, *range(0xD0, 0xDA))
"""Markers of JPEG without a length."""


def has_too_many(data: bytes) -> bool:
    """Return whether there are more than `MAX_PARTS` parts before the pixels of the first frame."""
    if data.startswith(PNG):
        return _png_parts(data) > MAX_PARTS
    if data.startswith(JPEG):
        return _jpeg_parts(data) > MAX_PARTS
    return data.startswith(GIF) and _gif_parts(data) > MAX_PARTS


def _png_parts(data: bytes) -> int:
    """Return the number of chunks, or more than `MAX_PARTS`."""
    at, parts = len(PNG), 0
    while at < len(data) and parts <= MAX_PARTS:
        length = int.from_bytes(data[at : at + 4])
        at += 12 + length  # length, kind, data, checksum
        parts += 1
    return parts


def _jpeg_parts(data: bytes) -> int:
    """Return the number of segments and of bytes between them, or more than `MAX_PARTS`."""
    at, parts = len(JPEG), 0
    while at + 1 < len(data) and parts <= MAX_PARTS:
        parts += 1
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):  # what stands between segments
            at += 1
        elif marker == _START_OF_SCAN:
            break
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return parts


def _gif_parts(data: bytes) -> int:
    """Return the number of blocks before the first frame, or more than `MAX_PARTS`."""
    flags = data[10] if len(data) > 10 else 0
    colours = 3 << ((flags & 7) + 1) if flags & 0x80 else 0
    at, parts = 13 + colours, 0
    while at < len(data) and parts <= MAX_PARTS:
        parts += 1
        kind = data[at : at + 1]
        if kind in (b",", b";"):
            break
        at += 1
        if kind != b"!":
            continue
        at += 1  # the kind of extension; then sub-blocks, of which an empty one is the last
        while at < len(data) and data[at] and parts <= MAX_PARTS:
            at += 1 + data[at]
            parts += 1
        at += 1
    return parts
