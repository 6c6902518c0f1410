"""The images that tools show: pixels, or a reference to pixels that lie in Ray's object store.

A screen crop of 1,024 x 1,024 pixels has 3 MB, and a step has hundreds. So they leave a rollout
worker as references (`rollout_workers.handing_over`). All that plans, counts or logs reads size
and digest; the pixels are fetched where they are shown to a model or written to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ray import ObjectRef

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB, shape [height, width, 3]."""

FETCH_S = 60.0
"""Seconds for an image to come from Ray's object store."""


class ImagesLost(Exception):
    """Images cannot be fetched: the node that kept them is gone, or does not answer."""


@dataclass(frozen=True)
class StoredImage:
    """One image of an object in Ray's store; the images of a trajectory are one object."""

    digest: str  # names the content, see `digest_of`
    height: int  # pixels
    width: int  # pixels
    place: int  # in `objects`
    # None on the way from a worker to the pool, which alone knows the reference
    objects: ObjectRef[tuple[Pixels, ...]] | None = None


ToolImage: TypeAlias = Pixels | StoredImage


def digest_of(pixels: Pixels) -> str:
    """Return a name of an image's content, its shape included."""
    total = blake2b(repr(pixels.shape).encode(), digest_size=16)
    total.update(np.ascontiguousarray(pixels).data)
    return total.hexdigest()


def image_digest(image: ToolImage) -> str:
    """Return the digest of an image. That of a stored one is known; pixels are hashed."""
    return image.digest if isinstance(image, StoredImage) else digest_of(image)


def image_size(image: ToolImage) -> tuple[int, int]:
    """Return height and width in pixels."""
    if isinstance(image, StoredImage):
        return image.height, image.width
    return image.shape[0], image.shape[1]


def fetched(images: Sequence[ToolImage]) -> list[Pixels]:
    """Return the pixels of images; blocks while stored ones are fetched, all at once.

    What is fetched is read-only and lies in the object store: it is no copy on the node that keeps
    it.

    Raises:
        ImagesLost: they did not come within FETCH_S.
    """
    stored = {image.objects for image in images if isinstance(image, StoredImage)}
    objects = dict(zip(stored, _get(list(stored)), strict=True))
    return [
        objects[image.objects][image.place] if isinstance(image, StoredImage) else image
        for image in images
    ]


def _get(references: Sequence[ObjectRef[tuple[Pixels, ...]] | None]) -> list[tuple[Pixels, ...]]:
    if not references:
        return []
    import ray

    try:
        return list(ray.get(references, timeout=FETCH_S))
    except ray.exceptions.RayError as error:
        raise ImagesLost(f"images of tools are lost: {type(error).__name__}") from error
