"""The images of one update: each distinct one is read, hashed and processed once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from axpo.quick_imports import quick_imports
from learner.credit import TrainItem
from rollout_workers.image_rule import ImagesConfig, image_rule
from rollout_workers.trajectory import Pixels, pixels

ImageKey: TypeAlias = Hashable
"""Equal for equal images of a step."""
BLANK: ImageKey = "blank"
"""A small black image, for micro-batches whose items have none."""
HASHERS = 4
"""Threads that hash images."""


def image_processor(model: str, images: ImagesConfig = ImagesConfig()) -> Any:
    """Return the image processor of a model folder, with the limits of a recipe.

    Args:
        model: the folder.
        images: the recipe's `images`, as the engines have it.
    """
    with quick_imports():
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(model).image_processor
    if not images.is_default:
        processor.size = type(processor.size)(**image_rule(model, images).size)
    return processor


class ImageStore:
    """What was made of the images of one update: each is hashed and processed once.

    The passes of the update share it.
    """

    def __init__(self, processor: Any, *, keep: bool = True) -> None:
        """Start empty.

        Args:
            processor: the image processor of the model folder, the one that the engine uses.
            keep: later passes will need the images; else those that a pass needs no more are
                forgotten (one of 2048 x 2048 pixels takes 100 MB).
        """
        self.processor = processor
        self._keep = keep
        # By the id of the pixels, which stay alive with their entry.
        self._digests: dict[int, tuple[Pixels, ImageKey]] = {}
        self._processed: dict[ImageKey, tuple[Tensor, Tensor]] = {}

    def hash(self, images: Sequence[Pixels]) -> None:
        """Hash images ahead of `key_of`, in threads: `hashlib` works without Python's lock."""
        new = {id(image): image for image in images if id(image) not in self._digests}
        with ThreadPoolExecutor(HASHERS, "image-hash") as threads:
            for image, key in zip(new.values(), threads.map(_content, new.values()), strict=True):
                self._digests[id(image)] = image, key

    def key_of(self, image: Pixels) -> ImageKey:
        """Return a key of an image's content."""
        # By content: continuations of one prefix may hold copies of the image in it.
        if id(image) not in self._digests:
            self._digests[id(image)] = image, _content(image)
        return self._digests[id(image)][1]

    def process(self, images: Mapping[ImageKey, Pixels]) -> None:
        """Process those images that are not processed yet."""
        from PIL import Image

        new = [key for key in images if key not in self._processed]
        if not new:
            return
        out = self.processor([Image.fromarray(images[key]) for key in new], return_tensors="pt")
        grids = out["image_grid_thw"]
        values = out["pixel_values"].split(grids.prod(-1).tolist())
        for key, value, grid in zip(new, values, grids, strict=True):
            self._processed[key] = value, grid

    def processed(self, key: ImageKey) -> tuple[Tensor, Tensor]:
        """Return pixel_values, shape [patches, values], and image_grid_thw, shape [3]."""
        return self._processed[key]

    def forget(self, keys: Collection[ImageKey]) -> None:
        """Forget what was made of images that the pass needs no more, unless a later one does."""
        for key in () if self._keep else keys:
            self._processed.pop(key, None)


class StepImages:
    """The distinct images of one pass, numbered in the order in which its items show them.

    A question's images are shared by its rollouts and continuations.
    """

    def __init__(self, store: ImageStore) -> None:
        """Start with the blank image; `store` is the update's."""
        self.store = store
        processor = store.processor
        self.merge = processor.merge_size
        side = processor.patch_size * processor.merge_size
        self._pixels: dict[ImageKey, Pixels] = {BLANK: np.zeros((side, side, 3), np.uint8)}
        self._numbers: dict[ImageKey, int] = {BLANK: 0}

    def add(self, item: TrainItem) -> list[ImageKey]:
        """Add the images of an item; blocks while those of a question are fetched.

        Returns:
            Their keys, in the order of the item's placeholders.
        """
        keys: list[ImageKey] = []
        for i, image in enumerate(item.question.images):
            key: ImageKey = (item.question.id, i)
            keys.append(key)
            if key not in self._pixels:
                self._pixels[key] = pixels(image)
        for image in item.trajectory.images:
            key = self.store.key_of(image)
            keys.append(key)
            self._pixels[key] = image
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        return keys

    def number(self, key: ImageKey) -> int:
        """Return the number of a distinct image of the pass, the same on every rank."""
        return self._numbers[key]

    def patches(self, key: ImageKey) -> int:
        """Return the patches that the vision tower reads."""
        # The processor's own count: the engine uses the same processor.
        height, width = self._pixels[key].shape[:2]
        return self.store.processor.get_number_of_image_patches(height, width)

    def features(self, key: ImageKey) -> int:
        """Return the tokens that the image takes in the model's input."""
        return self.patches(key) // self.merge**2

    def grid(self, key: ImageKey) -> tuple[int, int]:
        """Return height and width in tokens of an image that `tensors` has processed."""
        _, height, width = self.store.processed(key)[1].tolist()
        return height // self.merge, width // self.merge

    def tensors(self, keys: Sequence[ImageKey]) -> tuple[Tensor, Tensor]:
        """Return what the vision tower reads of U distinct images.

        Returns:
            pixel_values, shape [patches, values], and image_grid_thw, shape [U, 3].
        """
        self.store.process({key: self._pixels[key] for key in keys})
        values, grids = zip(*(self.store.processed(key) for key in keys), strict=True)
        return torch.cat(values), torch.stack(grids)


def _content(image: Pixels) -> ImageKey:
    return (image.shape, blake2b(np.ascontiguousarray(image).data).digest())
