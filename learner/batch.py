"""Train items become micro-batches: images expanded, sequences cut after their last trained token, laid out for the model.

Three layouts of the same items, with the same result:

    tree    rows that share a prefix share its tokens (learner.tree): prompt and images once for the N rollouts of a question,
            a source's prefix once for its K forks, a system prompt once for the questions of a micro-batch
    packed  rows side by side on one axis, attention confined to each
    padded  one row a sequence, padded on the right. No mask: under causal attention no real token sees the padding after it

Every micro-batch holds at least one image (a blank one, trained on nothing, where its items have none): a rank that
skipped the vision tower would leave the others waiting in ZeRO-3's gathers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import Layout
from learner.credit import TrainItem
from learner.tree import Tree, lay_out
from rollout_workers.trajectory import Floats, Pixels, pixels

ImageKey: TypeAlias = Hashable
BLANK: ImageKey = "blank"


@dataclass(frozen=True)
class VisionTokens:
    """Ids read from the model's config."""

    image_pad: int
    vision_start: int
    vision_end: int


@dataclass(frozen=True)
class Row:
    """One item as the model reads it: L input ids (images expanded), M trained tokens."""

    ids: NDArray[np.int64]  # [L]
    keys: NDArray[
        np.int64
    ]  # [L] ids, with a number of its own for each distinct image in place of its tokens
    images: tuple[ImageKey, ...]
    image_starts: NDArray[np.int64]  # [images] input position of each image's first token
    positions: NDArray[np.int64]  # [M] input position whose logits predict the trained token
    targets: NDArray[np.int64]  # [M]
    engine_logprobs: Floats  # [M] as sampled
    old_logprobs: Floats  # [M] the ratio's denominator
    advantages: Floats  # [M]
    weight: float  # of each trained token


@dataclass(frozen=True)
class MicroBatch:
    """B rows of L tokens (B is 1 unless padded); M trained tokens of the items; I images on the token axis, U distinct ones."""

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [3, B, L] rotary positions: time, height, width
    tree: Tree | None  # attention over the L tokens; None: causal rows
    pixel_values: Tensor  # [patches of U images, values]
    image_grid_thw: Tensor  # [U, 3]
    image_index: Tensor  # [I] into the U distinct images, in the order of the token axis
    items: Tensor  # [M] which item of the micro-batch a trained token belongs to
    positions: Tensor  # [M] into the B * L tokens
    targets: Tensor  # [M]
    engine_logprobs: Tensor  # [M]
    old_logprobs: Tensor  # [M]
    advantages: Tensor  # [M]
    weights: Tensor  # [M]

    def to(self, device: torch.device) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return MicroBatch(
            **{
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
        )


class StepImages:
    """The distinct images of one step. A question's are shared by its rollouts and forks; each is processed once."""

    def __init__(self, processor: Any) -> None:
        """`processor`: the image processor of the model folder, the one that the engine uses."""
        self._processor = processor
        self.merge = processor.merge_size
        side = processor.patch_size * processor.merge_size
        self._pixels: dict[ImageKey, Pixels] = {BLANK: np.zeros((side, side, 3), np.uint8)}
        self._numbers: dict[ImageKey, int] = {BLANK: 0}
        self._processed: dict[ImageKey, tuple[Tensor, Tensor]] = {}

    def add(self, item: TrainItem) -> list[ImageKey]:
        """Keys of the item's images in the order of its placeholders. Blocks while a question's images are fetched."""
        keys: list[ImageKey] = []
        for i, image in enumerate(item.question.images):
            keys.append((item.question.id, i))
            if keys[-1] not in self._pixels:
                self._pixels[keys[-1]] = pixels(image)
        for image in item.trajectory.images:
            # By content: forks of one prefix may hold copies of the image in it.
            keys.append((image.shape, blake2b(image.tobytes()).digest()))
            self._pixels[keys[-1]] = image
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        return keys

    def number(self, key: ImageKey) -> int:
        """A number for each distinct image of the step, the same on every rank."""
        return self._numbers[key]

    def patches(self, key: ImageKey) -> int:
        """Patches that the vision tower reads."""
        height, width = self._pixels[key].shape[:2]
        return self._processor.get_number_of_image_patches(height, width)

    def features(self, key: ImageKey) -> int:
        """Tokens that the image takes in the model's input."""
        return self.patches(key) // self.merge**2

    def grid(self, key: ImageKey) -> tuple[int, int]:
        """Height and width in tokens. Of images that `tensors` has processed."""
        _, height, width = self._processed[key][1].tolist()
        return height // self.merge, width // self.merge

    def tensors(self, keys: Sequence[ImageKey]) -> tuple[Tensor, Tensor]:
        """pixel_values [patches, values] and image_grid_thw [U, 3] of distinct images."""
        from PIL import Image

        missing = [key for key in keys if key not in self._processed]
        if missing:
            out = self._processor(
                [Image.fromarray(self._pixels[key]) for key in missing], return_tensors="pt"
            )
            values = out["pixel_values"].split(out["image_grid_thw"].prod(-1).tolist())
            self._processed.update(
                zip(missing, zip(values, out["image_grid_thw"], strict=True), strict=True)
            )
        return torch.cat([self._processed[key][0] for key in keys]), torch.stack(
            [self._processed[key][1] for key in keys]
        )


def make_row(
    item: TrainItem,
    images: StepImages,
    image_pad: int,
    *,
    divisor: float | None = None,
    old_logprobs: Floats | None = None,
) -> Row:
    """Expand the images of one item and cut it after its last trained token.

    Args:
        item: has at least one trained token.
        images: the step's; the item's own are added to them.
        image_pad: id of an image's placeholder.
        divisor: a token weighs the item's weight / divisor; None: the number of its trained tokens,
            so that the item counts as their mean.
        old_logprobs: what the ratio compares with, shape [R]; None: the engine's.

    Raises:
        ValueError: placeholders and images differ in number.
    """
    trajectory = item.trajectory
    keys = images.add(item)
    ids = np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64)
    pads = ids == image_pad
    if pads.sum() != len(keys):
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id}: "
            f"{pads.sum()} placeholders for {len(keys)} images"
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[pads] = [images.features(key) for key in keys]
    starts = np.cumsum(repeats) - repeats
    # Equal tokens have equal keys, and so have equal images: the tree shares what is equal.
    marked = ids.copy()
    marked[pads] = [-1 - images.number(key) for key in keys]
    trained = np.flatnonzero(item.mask)
    tokens = trained + len(trajectory.prompt_ids)
    last = tokens[-1]
    kept = int(pads[:last].sum())
    old = trajectory.logprobs if old_logprobs is None else old_logprobs
    return Row(
        ids=np.repeat(ids[:last], repeats[:last]),
        keys=np.repeat(marked[:last], repeats[:last]),
        images=tuple(keys[:kept]),
        image_starts=starts[pads][:kept],
        positions=starts[tokens] - 1,
        targets=ids[tokens],
        engine_logprobs=trajectory.logprobs[trained],
        old_logprobs=old[trained],
        advantages=item.advantages[trained],
        weight=item.weight / (divisor or len(trained)),
    )


def rotary_positions(
    length: int, image_starts: Sequence[int], grids: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """[3, length] time, height and width positions of Qwen3-VL (`get_rope_index` of transformers, still images).

    Text counts up on all three. An image of h x w tokens at position p takes time p, heights p..p+h-1 and widths p..p+w-1;
    the text after it goes on at p + max(h, w).
    """
    out = np.zeros((3, length), np.int64)
    done, position = 0, 0
    for start, (height, width) in zip(image_starts, grids, strict=True):
        out[:, done:start] = np.arange(start - done) + position
        position += start - done
        done = start + height * width
        out[0, start:done] = position
        out[1, start:done] = position + np.repeat(np.arange(height), width)
        out[2, start:done] = position + np.tile(np.arange(width), height)
        position += max(height, width)
    out[:, done:] = np.arange(length - done) + position
    return out


def collate(
    rows: Sequence[Row], images: StepImages, vision: VisionTokens, layout: Layout
) -> MicroBatch:
    """One micro-batch; of no rows: the blank image alone."""
    rows = list(rows)
    trained = len(rows)
    if not any(row.images for row in rows):
        rows.append(_blank_row(images, vision))
    distinct = {
        key: u for u, key in enumerate(dict.fromkeys(key for row in rows for key in row.images))
    }
    pixel_values, image_grid_thw = images.tensors(list(distinct))
    rotary = [
        rotary_positions(
            len(row.ids), row.image_starts.tolist(), [images.grid(key) for key in row.images]
        )
        for row in rows
    ]
    if layout == "padded":
        tree, length = None, max(len(row.ids) for row in rows)
        index = [b * length + np.arange(len(row.ids)) for b, row in enumerate(rows)]
        pieces = [(b, 0) for b in range(len(rows))]
    else:
        tree, index, pieces = lay_out([row.keys for row in rows], share=layout == "tree")
        length = len(tree.ends)
    shape = len(rows) if layout == "padded" else 1, length
    # Any id that is no image will do as padding: nothing attends to it.
    input_ids = np.full(shape[0] * length, vision.vision_end)
    position_ids = np.zeros((3, shape[0] * length), np.int64)
    for b, first in pieces:
        input_ids[index[b][first:]] = rows[b].ids[first:]
        position_ids[:, index[b][first:]] = rotary[b][:, first:]
    shown = [
        distinct[key]
        for b, first in pieces
        for key, start in zip(rows[b].images, rows[b].image_starts, strict=True)
        if start >= first
    ]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids).view(shape),
        position_ids=torch.from_numpy(position_ids).view(3, *shape),
        tree=tree,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        image_index=torch.tensor(shown),
        items=_cat(
            (np.full(len(row.targets), b) for b, row in enumerate(rows[:trained])), np.int64
        ),
        positions=_cat((index[b][row.positions] for b, row in enumerate(rows[:trained])), np.int64),
        targets=_cat((row.targets for row in rows[:trained]), np.int64),
        engine_logprobs=_cat((row.engine_logprobs for row in rows[:trained]), np.float32),
        old_logprobs=_cat((row.old_logprobs for row in rows[:trained]), np.float32),
        advantages=_cat((row.advantages for row in rows[:trained]), np.float32),
        weights=_cat((np.full(len(row.targets), row.weight) for row in rows[:trained]), np.float32),
    )


def _blank_row(images: StepImages, vision: VisionTokens) -> Row:
    ids = np.array(
        [vision.vision_start, *[vision.image_pad] * images.features(BLANK), vision.vision_end]
    )
    keys = np.where(ids == vision.image_pad, -1 - images.number(BLANK), ids)
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Row(ids, keys, (BLANK,), np.array([1]), none, none, nothing, nothing, nothing, 0.0)


def _cat(parts: Iterator[NDArray[Any]], dtype: Any) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype))
