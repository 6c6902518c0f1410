"""Images as an engine takes them.

Each turn of each rollout shows all its images again. So each image is copied into the engine's form
and hashed once (12 megapixels take about 0.1 s), and not with each of some 1,200 requests a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rollout_workers.images import Pixels, StoredImage, ToolImage, digest_of, fetched

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Picture:
    """One image of a request."""

    image: Image
    digest: str
    """Names the content: the engine's caches keep what it computed of an image under this name."""


def picture(pixels: Pixels, digest: str | None = None) -> Picture:
    """Copy an image, and hash it unless its digest is known."""
    from PIL import Image

    return Picture(Image.fromarray(pixels), digest or digest_of(pixels))


class Pictures:
    """The images of one question's rollouts: those of the question, and those that tools show."""

    def __init__(self, question: Sequence[Picture]) -> None:
        """Start with the question's own."""
        self.question = list(question)
        # Pixels stay alive with their entry, whose key may be their id.
        self._observed: dict[int | str, tuple[Pixels, Picture]] = {}

    async def shown(self, observed: Sequence[ToolImage]) -> list[Picture]:
        """Return what a request shows: the question's images, then those that were observed.

        Raises:
            ImagesLost: those of a fork's prefix cannot be fetched.
        """
        return self.question + [made for _, made in await self._seen(observed)]

    async def pixels(self, observed: Sequence[ToolImage]) -> list[Pixels]:
        """Return the pixels of images that were observed.

        Raises:
            ImagesLost: those of a fork's prefix cannot be fetched.
        """
        return [pixels for pixels, _ in await self._seen(observed)]

    async def _seen(self, observed: Sequence[ToolImage]) -> list[tuple[Pixels, Picture]]:
        new = [image for image in observed if _key(image) not in self._observed]
        if new:
            made = await asyncio.to_thread(_pictures, new)
            for image, entry in zip(new, made, strict=True):
                self._observed[_key(image)] = entry
        return [self._observed[_key(image)] for image in observed]


def _key(image: ToolImage) -> int | str:
    return image.digest if isinstance(image, StoredImage) else id(image)


def _pictures(images: Sequence[ToolImage]) -> list[tuple[Pixels, Picture]]:
    entries = []
    for image, pixels in zip(images, fetched(images), strict=True):
        if isinstance(image, StoredImage):
            entries.append((pixels, picture(pixels, image.digest)))
        else:
            entries.append((pixels, picture(pixels)))
    return entries
