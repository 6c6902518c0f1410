"""Micro-batches: rows laid out for the model.

There are three layouts of the same rows, with the same result:

    tree    rows that share a prefix share its tokens (`learner.tree`): prompt and images once for
            the N rollouts of a question, a source's prefix once for its K continuations, a system
            prompt once for the questions of a micro-batch
    packed  rows side by side on one axis, attention confined to each
    padded  one row a sequence, padded on the right. There is no mask: under causal attention no
            real token sees the padding after it

Every micro-batch holds at least one image (a blank one, trained on nothing, if its items have
none): a rank that skipped the vision tower would leave the others waiting in ZeRO-3's gathers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import Layout
from learner.images import StepImages
from learner.rows import Row, VisionTokens, blank_row
from learner.tree import Ints, Tree, lay_out
from rollout_workers.families import RotaryRule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class MicroBatch:
    """B rows of L tokens (B is 1 unless padded), and what they show and train.

    M are the trained tokens of the items, I the images on the token axis, U the distinct ones.
    """

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

    @cached_property
    def block_mask(self) -> BlockMask | None:
        """The tree as FlexAttention's mask, for policy and reference alike; None on a CPU."""
        device = self.input_ids.device
        if self.tree is None or device.type != "cuda":
            return None
        return self.tree.block_mask(device)

    def to(self, device: torch.device) -> MicroBatch:
        """Return the micro-batch with its tensors on a device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return MicroBatch(**moved)


@dataclass(frozen=True)
class _Axis:
    """Where the tokens of some rows lie on the flat axis of B * L tokens."""

    shape: tuple[int, int]  # (B, L)
    tree: Tree | None
    index: list[Ints]  # for each row the flat position of each of its tokens
    pieces: list[tuple[int, int]]  # (row, first token): what is laid down, in the axis's order


def collate(
    rows: Sequence[Row], images: StepImages, vision: VisionTokens, layout: Layout
) -> MicroBatch:
    """Lay rows out as one micro-batch; no rows give the blank image alone.

    Args:
        rows: this rank's, none twice.
        images: those of the step.
        vision: the model's ids around images, and their positions.
        layout: see the head of this module.
    """
    shown = list(rows)
    if not any(row.images for row in rows):
        shown.append(blank_row(images, vision))
    # In the order of first sight: the vision tower encodes each distinct image once.
    distinct: dict[Any, int] = {}
    for row in shown:
        for key in row.images:
            distinct.setdefault(key, len(distinct))
    pixel_values, image_grid_thw = images.tensors(list(distinct))
    axis = _axis(shown, layout)
    # Any id that is no image will do as padding: nothing attends to it.
    input_ids = np.full(axis.shape[0] * axis.shape[1], vision.vision_end)
    position_ids = np.zeros((3, len(input_ids)), np.int64)
    image_index = []
    # A shared prefix is laid down with the first of its rows, and so are the images in it.
    for b, first in axis.pieces:
        row, places = shown[b], axis.index[b][first:]
        input_ids[places] = row.ids[first:]
        position_ids[:, places] = _rotary(row, images, vision.rotary_positions)[:, first:]
        for key, start in zip(row.images, row.image_starts, strict=True):
            if start >= first:
                image_index.append(distinct[key])
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids).view(axis.shape),
        position_ids=torch.from_numpy(position_ids).view(3, *axis.shape),
        tree=axis.tree,
        pixel_values=pixel_values,
        image_grid_thw=image_grid_thw,
        image_index=torch.tensor(image_index),
        **_trained(rows, axis),
    )


def _trained(rows: Sequence[Row], axis: _Axis) -> dict[str, Tensor]:
    """Return the fields of a micro-batch that have an entry for each trained token."""
    items = [np.full(len(row.targets), b) for b, row in enumerate(rows)]
    positions = [axis.index[b][row.positions] for b, row in enumerate(rows)]
    weights = [np.full(len(row.targets), row.weight) for row in rows]
    return {
        "items": _cat(items, np.int64),
        "positions": _cat(positions, np.int64),
        "targets": _cat([row.targets for row in rows], np.int64),
        "engine_logprobs": _cat([row.engine_logprobs for row in rows], np.float32),
        "old_logprobs": _cat([row.old_logprobs for row in rows], np.float32),
        "advantages": _cat([row.advantages for row in rows], np.float32),
        "weights": _cat(weights, np.float32),
    }


def _rotary(row: Row, images: StepImages, rule: RotaryRule) -> NDArray[np.int64]:
    grids = [images.grid(key) for key in row.images]
    return rule(len(row.ids), row.image_starts.tolist(), grids)


def _axis(rows: Sequence[Row], layout: Layout) -> _Axis:
    # Row b of a padded batch begins at b * L.
    if layout == "padded":
        length = max(len(row.ids) for row in rows)
        index = [b * length + np.arange(len(row.ids)) for b, row in enumerate(rows)]
        pieces = [(b, 0) for b in range(len(rows))]
        return _Axis((len(rows), length), None, index, pieces)
    laid = lay_out([row.keys for row in rows], share=layout == "tree")
    return _Axis((1, len(laid.tree.ends)), laid.tree, laid.index, laid.pieces)


def _cat(parts: Iterable[NDArray[Any]], dtype: type[np.generic]) -> Tensor:
    # The empty array stands for no parts, which concatenate refuses.
    joined = np.concatenate([np.zeros(0, dtype), *parts])
    return torch.from_numpy(joined.astype(dtype))
