"""Images as an engine takes them.

Each turn of each rollout shows all its images again. So each image is copied into the engine's form
and hashed once (12 megapixels take about 0.1 s), and not with each of some 1,200 requests a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from rollout_workers.trajectory import Pixels

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


def digest_of(pixels: Pixels) -> str:
    """Return a name of an image's content, its shape included."""
    total = blake2b(repr(pixels.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(pixels).data)
    return total.hexdigest()


class Pictures:
    """The images of one question's rollouts: those of the question, and those that tools show."""

    def __init__(self, question: Sequence[Picture]) -> None:
        """Start with the question's own."""
        self.question = list(question)
        # By the id of the pixels, which stay alive with their entry.
        self._observed: dict[int, tuple[Pixels, Picture]] = {}

    async def shown(self, observed: Sequence[Pixels]) -> list[Picture]:
        """Return what a request shows: the question's images, then those that were observed."""
        new = [pixels for pixels in observed if id(pixels) not in self._observed]
        if new:
            made = await asyncio.to_thread(_pictures, new)
            for pixels, made_of_it in zip(new, made, strict=True):
                self._observed[id(pixels)] = pixels, made_of_it
        return self.question + [self._observed[id(pixels)][1] for pixels in observed]


def _pictures(images: Sequence[Pixels]) -> list[Picture]:
    return [picture(pixels) for pixels in images]
