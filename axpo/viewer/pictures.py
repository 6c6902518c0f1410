"""The images of a run as pages load them: checked, decoded, and not larger than a screen."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup

from axpo.record.records import ImageFolder
from axpo.report.images import Shrunk, shrunk

SIDE = 1024
"""Of an image on a page, pixels."""
THUMBNAIL = 120
PIXELATED = 256
"""Images up to this side are shown with their pixels: the embedded tasks draw small digits."""


class Pictures:
    """Stands in for `axpo.report.images.Images` where images are files of their own."""

    def __init__(self, address: str, folder: ImageFolder) -> None:
        """Make the pictures of a run.

        Args:
            address: what the address of an image begins with.
            folder: the images.
        """
        self._address, self._folder = address, folder
        self._kept = lru_cache(maxsize=256)(self._load)

    def get(self, name: str, *, thumbnail: bool = False) -> Shrunk | None:
        """Return an image; None if the run has no such one."""
        return self._kept(name, THUMBNAIL if thumbnail else SIDE)

    def size(self, name: str) -> tuple[int, int]:
        """Return (width, height) in pixels as shown; (0, 0) if the file cannot be read."""
        image = self.get(name)
        return (image.width, image.height) if image else (0, 0)

    def markup(self, name: str) -> Markup:
        """Return what stands in an SVG for an image of this size."""
        width, height = self.size(name)
        kind = "pixels" if max(width, height) <= PIXELATED else "smooth"
        shown = Markup(
            '<image class="{}" href="{}{}" width="{}" height="{}" preserveAspectRatio="none"/>'
        )
        return shown.format(kind, self._address, name, width, height)

    def _load(self, name: str, side: int) -> Shrunk | None:
        try:
            return shrunk(self._folder, name, side)
        except ValueError:
            return None
