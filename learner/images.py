"""The images of one update: each distinct one is processed once, by the ranks that show it.

A rank plans with the sizes and digests of all images, and fetches the pixels of its own rows only.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from axpo.quick_imports import quick_imports
from learner.credit import TrainItem
from rollout_workers.image_rule import ImagesConfig, image_rule
from rollout_workers.images import Pixels, StoredImage, ToolImage, digest_of, image_size
from rollout_workers.trajectory import Question, QuestionImage, pixels

ImageKey: TypeAlias = Hashable
"""Equal for equal images of a step."""
BLANK: ImageKey = "blank"
"""A small black image, for micro-batches whose items have none."""
HASHERS = 4
"""Threads that hash images. Only those of scripted trajectories have no digest yet."""


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

    def hash(self, images: Sequence[ToolImage]) -> None:
        """Hash pixels ahead of `key_of`, in threads: `hashlib` works without Python's lock."""
        new: dict[int, Pixels] = {}
        for image in images:
            if not isinstance(image, StoredImage) and id(image) not in self._digests:
                new[id(image)] = image
        with ThreadPoolExecutor(HASHERS, "image-hash") as threads:
            for image, key in zip(new.values(), threads.map(digest_of, new.values()), strict=True):
                self._digests[id(image)] = image, key

    def key_of(self, image: ToolImage) -> ImageKey:
        """Return a key of an image's content."""
        # By content: continuations of one prefix may hold copies of the image in it.
        if isinstance(image, StoredImage):
            return image.digest
        if id(image) not in self._digests:
            self._digests[id(image)] = image, digest_of(image)
        return self._digests[id(image)][1]

    def process(self, images: Mapping[ImageKey, QuestionImage | ToolImage]) -> None:
        """Fetch and process those images that are not processed yet."""
        from PIL import Image

        new = [key for key in images if key not in self._processed]
        if not new:
            return
        shown = [Image.fromarray(pixels(images[key])) for key in new]
        out = self.processor(shown, return_tensors="pt")
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
        blank = np.zeros((side, side, 3), np.uint8)
        self._images: dict[ImageKey, QuestionImage | ToolImage] = {BLANK: blank}
        self._sizes: dict[ImageKey, tuple[int, int]] = {BLANK: image_size(blank)}
        self._numbers: dict[ImageKey, int] = {BLANK: 0}

    def add(self, item: TrainItem) -> list[ImageKey]:
        """Add the images of an item; no pixels are fetched.

        Returns:
            Their keys, in the order of the item's placeholders.
        """
        keys = self._add_question(item.question)
        for image in item.trajectory.images:
            key = self.store.key_of(image)
            keys.append(key)
            self._images[key] = image
            self._sizes[key] = image_size(image)
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        return keys

    def _add_question(self, question: Question) -> list[ImageKey]:
        keys: list[ImageKey] = [(question.id, i) for i in range(len(question.images))]
        for i, key in enumerate(keys):
            if key in self._images:
                continue
            image: QuestionImage = question.images[i]
            if question.image_sizes:
                self._sizes[key] = question.image_sizes[i]
            else:
                image = pixels(image)
                self._sizes[key] = image_size(image)
            self._images[key] = image
        return keys

    def number(self, key: ImageKey) -> int:
        """Return the number of a distinct image of the pass, the same on every rank."""
        return self._numbers[key]

    def patches(self, key: ImageKey) -> int:
        """Return the patches that the vision tower reads."""
        # The processor's own count: the engine uses the same processor.
        return self.store.processor.get_number_of_image_patches(*self._sizes[key])

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
        self.store.process({key: self._images[key] for key in keys})
        values, grids = zip(*(self.store.processed(key) for key in keys), strict=True)
        return torch.cat(values), torch.stack(grids)
