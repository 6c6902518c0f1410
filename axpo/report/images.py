"""The images of the page: each is embedded once as a data URI, however often it is shown."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

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


def _embed(folder: ImageFolder, name: str) -> Embedded:
    # PIL is slow to import, and only a page that is rendered needs it.
    from PIL import Image

    try:
        image = Image.fromarray(folder.load(name))
    except ValueError:
        return Embedded()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    kind = "png" if max(image.size) <= PNG_SIDE else "jpeg"
    data = io.BytesIO()
    # PNG has no quality and ignores it.
    image.save(data, kind, quality=85)
    text = base64.b64encode(data.getvalue()).decode()
    return Embedded(f"data:image/{kind};base64,{text}", image.width, image.height)
