"""The images of one step: each distinct one is read and processed once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from learner.credit import TrainItem
from rollout_workers.image_rule import ImagesConfig, image_rule
from rollout_workers.trajectory import Pixels, pixels

ImageKey: TypeAlias = Hashable
"""Equal for equal images of a step."""
BLANK: ImageKey = "blank"
"""A small black image, for micro-batches whose items have none."""


def image_processor(model: str, images: ImagesConfig = ImagesConfig()) -> Any:
    """Return the image processor of a model folder, with the limits of a recipe.

    Args:
        model: the folder.
        images: the recipe's `images`, as the engines have it.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model).image_processor
    if not images.is_default:
        processor.size = type(processor.size)(**image_rule(model, images).size)
    return processor


class StepImages:
    """Keep the distinct images of one step.

    A question's images are shared by its rollouts and continuations.
    """

    def __init__(self, processor: Any) -> None:
        """Start with the blank image.

        Args:
            processor: the image processor of the model folder, the one that the engine uses.
        """
        self.merge = processor.merge_size
        self._processor = processor
        side = processor.patch_size * processor.merge_size
        self._pixels: dict[ImageKey, Pixels] = {BLANK: np.zeros((side, side, 3), np.uint8)}
        self._numbers: dict[ImageKey, int] = {BLANK: 0}
        self._processed: dict[ImageKey, tuple[Tensor, Tensor]] = {}

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
            # By content: continuations of one prefix may hold copies of the image in it.
            key = (image.shape, blake2b(image.tobytes()).digest())
            keys.append(key)
            self._pixels[key] = image
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        return keys

    def number(self, key: ImageKey) -> int:
        """Return the number of a distinct image of the step, the same on every rank."""
        return self._numbers[key]

    def patches(self, key: ImageKey) -> int:
        """Return the patches that the vision tower reads."""
        # The processor's own count: the engine uses the same processor.
        height, width = self._pixels[key].shape[:2]
        return self._processor.get_number_of_image_patches(height, width)

    def features(self, key: ImageKey) -> int:
        """Return the tokens that the image takes in the model's input."""
        return self.patches(key) // self.merge**2

    def grid(self, key: ImageKey) -> tuple[int, int]:
        """Return height and width in tokens of an image that `tensors` has processed."""
        _, height, width = self._processed[key][1].tolist()
        return height // self.merge, width // self.merge

    def tensors(self, keys: Sequence[ImageKey]) -> tuple[Tensor, Tensor]:
        """Return what the vision tower reads of U distinct images.

        Returns:
            pixel_values, shape [patches, values], and image_grid_thw, shape [U, 3].
        """
        self._process([key for key in keys if key not in self._processed])
        values = [self._processed[key][0] for key in keys]
        grids = [self._processed[key][1] for key in keys]
        return torch.cat(values), torch.stack(grids)

    def _process(self, keys: Sequence[ImageKey]) -> None:
        from PIL import Image

        if not keys:
            return
        images = [Image.fromarray(self._pixels[key]) for key in keys]
        out = self._processor(images, return_tensors="pt")
        grids = out["image_grid_thw"]
        values = out["pixel_values"].split(grids.prod(-1).tolist())
        for key, value, grid in zip(keys, values, grids, strict=True):
            self._processed[key] = value, grid
