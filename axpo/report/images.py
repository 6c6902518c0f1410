"""The images of the page: each is embedded once as a data URI, however often it is shown."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from markupsafe import Markup

from axpo.record.records import ImageFolder

IMAGE_SIDE = 640
"""Longer sides are scaled down for the page, pixels."""
PNG_SIDE = 160
"""Images up to this side are embedded exactly: crops of small things are what a reader looks at."""


class Embedded(NamedTuple):
    """One image as the page has it; all empty for a file that is missing or unreadable."""

    uri: str = ""
    width: int = 0
    height: int = 0


class Images:
    """The images of a run directory that the page shows.

    Attributes:
        used: by file name, in the order in which the page asked for them.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self.used: dict[str, Embedded] = {}

    def size(self, name: str) -> tuple[int, int]:
        """Return (width, height) in pixels as embedded; (0, 0) if the file cannot be read."""
        if name not in self.used:
            self.used[name] = _embed(self.folder, name)
        image = self.used[name]
        return image.width, image.height

    def markup(self, name: str) -> Markup:
        """Return what stands in an SVG for an image of this size."""
        width, height = self.size(name)
        shown = Markup('<use href="#{}" width="{}" height="{}"/>')
        return shown.format(name, width, height)


class Shrunk(NamedTuple):
    """An image as a browser gets it: `kind` is png or jpeg."""

    kind: str
    content: bytes
    width: int
    height: int


def shrunk(folder: ImageFolder, name: str, side: int) -> Shrunk:
    """Return an image of a run, decoded within limits and encoded again.

    Args:
        folder: of the images.
        name: of the file.
        side: longer sides are scaled down to so many pixels.

    Raises:
        ValueError: it is no image of this folder.
    """
    # PIL is slow to import, and only a page that is rendered needs it.
    from PIL import Image

    image = Image.fromarray(folder.load(name))
    image.thumbnail((side, side))
    kind = "png" if max(image.size) <= PNG_SIDE else "jpeg"
    data = io.BytesIO()
    # PNG has no quality and ignores it.
    image.save(data, kind, quality=85)
    return Shrunk(kind, data.getvalue(), image.width, image.height)


def _embed(folder: ImageFolder, name: str) -> Embedded:
    try:
        image = shrunk(folder, name, IMAGE_SIDE)
    except ValueError:
        return Embedded()
    text = base64.b64encode(image.content).decode()
    return Embedded(f"data:image/{image.kind};base64,{text}", image.width, image.height)
