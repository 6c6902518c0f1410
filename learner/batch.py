"""Train items become padded micro-batches: images expanded, sequences cut after their last trained token.

Rows are padded on the right and need no attention mask: under causal attention no real token sees the padding after it.
Every micro-batch holds at least one image (a blank one, trained on nothing, where its items have none): a rank that
skipped the vision tower would leave the others waiting in ZeRO-3's gathers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.credit import TrainItem
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
    images: tuple[ImageKey, ...]
    positions: NDArray[np.int64]  # [M] input position whose logits predict the trained token
    targets: NDArray[np.int64]  # [M]
    old_logprobs: Floats  # [M]
    advantages: Floats  # [M]
    weight: float  # of each trained token: the item's weight / M


@dataclass(frozen=True)
class MicroBatch:
    """B rows of L tokens; M trained tokens on one flat axis; I images, of which U are distinct."""

    input_ids: Tensor  # [B, L]
    mm_token_type_ids: Tensor  # [B, L], 1 on image tokens
    pixel_values: Tensor  # [patches of U images, values]
    image_grid_thw: Tensor  # [U, 3]
    image_index: Tensor  # [I] into the U distinct images, in the order of the rows
    rows: Tensor  # [M]
    positions: Tensor  # [M]
    targets: Tensor  # [M]
    old_logprobs: Tensor  # [M]
    advantages: Tensor  # [M]
    weights: Tensor  # [M]

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(**{name: value.to(device) for name, value in vars(self).items()})


class StepImages:
    """The distinct images of one step. A question's are shared by its rollouts and forks; each is processed once."""

    def __init__(self, processor: Any) -> None:
        """`processor`: the image processor of the model folder, the one that the engine uses."""
        self._processor = processor
        self._merge = processor.merge_size**2
        side = processor.patch_size * processor.merge_size
        self._pixels: dict[ImageKey, Pixels] = {BLANK: np.zeros((side, side, 3), np.uint8)}
        self._processed: dict[ImageKey, tuple[Tensor, Tensor]] = {}

    def add(self, item: TrainItem) -> list[ImageKey]:
        """Keys of the item's images in the order of its placeholders. Blocks while a question's images are fetched."""
        keys: list[ImageKey] = []
        for i, image in enumerate(item.question.images):
            keys.append((item.question.id, i))
            if keys[-1] not in self._pixels:
                self._pixels[keys[-1]] = pixels(image)
        for image in item.trajectory.images:
            keys.append(id(image))  # the step keeps the array alive, so its id names it
            self._pixels[keys[-1]] = image
        return keys

    def features(self, key: ImageKey) -> int:
        """Tokens that the image takes in the model's input."""
        height, width = self._pixels[key].shape[:2]
        return self._processor.get_number_of_image_patches(height, width) // self._merge

    def tensors(self, keys: Sequence[ImageKey]) -> tuple[Tensor, Tensor]:
        """pixel_values [patches, values] and image_grid_thw [U, 3] of distinct images."""
        from PIL import Image

        missing = [key for key in keys if key not in self._processed]
        if missing:
            out = self._processor([Image.fromarray(self._pixels[key]) for key in missing], return_tensors="pt")
            values = out["pixel_values"].split(out["image_grid_thw"].prod(-1).tolist())
            self._processed.update(zip(missing, zip(values, out["image_grid_thw"], strict=True), strict=True))
        return torch.cat([self._processed[key][0] for key in keys]), torch.stack([self._processed[key][1] for key in keys])


def make_row(item: TrainItem, keys: Sequence[ImageKey], features: Sequence[int], image_pad: int) -> Row:
    """Expand and cut one item. Raises ValueError where its placeholders and images differ in number."""
    trajectory = item.trajectory
    ids = np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64)
    pads = ids == image_pad
    if pads.sum() != len(keys):
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id}: {pads.sum()} placeholders for {len(keys)} images"
        )
    repeats = np.ones(len(ids), np.int64)
    repeats[pads] = features
    starts = np.cumsum(repeats) - repeats
    trained = np.flatnonzero(item.mask)
    tokens = trained + len(trajectory.prompt_ids)
    last = tokens[-1]
    return Row(
        ids=np.repeat(ids[:last], repeats[:last]),
        images=tuple(keys[: int(pads[:last].sum())]),
        positions=starts[tokens] - 1,
        targets=ids[tokens],
        old_logprobs=trajectory.logprobs[trained],
        advantages=item.advantages[trained],
        weight=item.weight / len(trained),
    )


def plan(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """[steps][ranks] -> indices of the rows of that micro-batch; [] where a rank has none.

    Rows sorted by length are cut into consecutive micro-batches of at most `budget` padded tokens (a longer row stands
    alone). The number of steps is the smallest possible; then the largest micro-batch is made as small as possible.
    Ranks run a step in lockstep under ZeRO-3, so neighbours in length share a step.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def pack(limit: int) -> list[list[int]]:
        bins: list[list[int]] = []
        for i in order:
            if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= limit:
                bins[-1].append(i)
            else:
                bins.append([i])
        return bins

    slots = -(-len(pack(budget)) // ranks) * ranks
    low, high = 0, budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(pack(middle)) <= slots else (middle + 1, high)
    bins = pack(low)
    bins += [[] for _ in range(slots - len(bins))]
    return [bins[s : s + ranks] for s in range(0, slots, ranks)]


def collate(rows: Sequence[Row], images: StepImages, vision: VisionTokens) -> MicroBatch:
    """One padded micro-batch; of no rows: the blank image alone."""
    ids = [row.ids for row in rows]
    keys = [key for row in rows for key in row.images]
    if not keys:
        ids.append(np.array([vision.vision_start, *[vision.image_pad] * images.features(BLANK), vision.vision_end]))
        keys.append(BLANK)
    distinct = {key: u for u, key in enumerate(dict.fromkeys(keys))}
    pixel_values, image_grid_thw = images.tensors(list(distinct))
    # Any id that is no image will do as padding: nothing attends to it.
    input_ids = np.full((len(ids), max(map(len, ids))), vision.vision_end)
    for b, row_ids in enumerate(ids):
        input_ids[b, : len(row_ids)] = row_ids
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        mm_token_type_ids=torch.from_numpy((input_ids == vision.image_pad).astype(np.int64)),
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        image_index=torch.tensor([distinct[key] for key in keys]),
        rows=torch.from_numpy(_cat([np.full(len(row.targets), b) for b, row in enumerate(rows)], np.int64)),
        positions=torch.from_numpy(_cat([row.positions for row in rows], np.int64)),
        targets=torch.from_numpy(_cat([row.targets for row in rows], np.int64)),
        old_logprobs=torch.from_numpy(_cat([row.old_logprobs for row in rows], np.float32)),
        advantages=torch.from_numpy(_cat([row.advantages for row in rows], np.float32)),
        weights=torch.from_numpy(_cat([np.full(len(row.targets), row.weight) for row in rows], np.float32)),
    )


def _cat(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
