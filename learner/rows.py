"""Rows: train items as the model reads them, with images expanded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.credit import TrainItem
from learner.images import BLANK, ImageKey, StepImages
from rollout_workers.families import RotaryRule, still_image_positions
from rollout_workers.trajectory import Floats, PolicySegment, Trajectory


@dataclass(frozen=True)
class VisionTokens:
    """How images stand among a model's tokens: ids read from its config, and its rotary rule."""

    image_pad: int
    vision_start: int
    vision_end: int
    rotary_positions: RotaryRule = still_image_positions


@dataclass(frozen=True)
class Row:
    """One item as the model reads it: L input ids (images expanded), M trained tokens."""

    ids: NDArray[np.int64]  # [L]
    keys: NDArray[np.int64]  # [L] ids, but a number of its own for each distinct image
    images: tuple[ImageKey, ...]
    image_starts: NDArray[np.int64]  # [images] input position of each image's first token
    positions: NDArray[np.int64]  # [M] input position whose logits predict the trained token
    targets: NDArray[np.int64]  # [M]
    engine_logprobs: Floats  # [M] as sampled
    old_logprobs: Floats  # [M] the ratio's denominator
    advantages: Floats  # [M]
    weight: float  # of each trained token


def make_row(
    item: TrainItem,
    images: StepImages,
    image_pad: int,
    *,
    divisor: float | None = None,
    old_logprobs: Floats | None = None,
) -> Row:
    """Expand the images of one item, and cut it after its last trained token.

    Args:
        item: has at least one trained token.
        images: the step's; the item's own are added to them.
        image_pad: id of an image's placeholder.
        divisor: a token weighs the item's weight / divisor; None: the number of trained tokens.
        old_logprobs: what the ratio compares with, shape [R]; None: the engine's.

    Raises:
        ValueError: placeholders and images differ in number, or the engine's prompts in length.
    """
    trajectory = item.trajectory
    keys = images.add(item)
    ids = np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64)
    pads = ids == image_pad
    _check_images(item, int(pads.sum()), len(keys))
    repeats = np.ones(len(ids), np.int64)
    repeats[pads] = [images.features(key) for key in keys]
    starts = np.cumsum(repeats) - repeats
    _check_lengths(item, starts)
    # Equal tokens have equal keys, and so have equal images: a tree shares what is equal.
    marked = ids.copy()
    marked[pads] = [-1 - images.number(key) for key in keys]
    trained = np.flatnonzero(item.mask)
    tokens = trained + len(trajectory.prompt_ids)
    # The last trained token is predicted, but never read.
    last = tokens[-1]
    images_read = int(pads[:last].sum())
    old = trajectory.logprobs if old_logprobs is None else old_logprobs
    return Row(
        ids=np.repeat(ids[:last], repeats[:last]),
        keys=np.repeat(marked[:last], repeats[:last]),
        images=tuple(keys[:images_read]),
        image_starts=starts[pads][:images_read],
        positions=starts[tokens] - 1,
        targets=ids[tokens],
        engine_logprobs=trajectory.logprobs[trained],
        old_logprobs=old[trained],
        advantages=item.advantages[trained],
        weight=item.weight / (divisor or len(trained)),
    )


def _check_images(item: TrainItem, placeholders: int, images: int) -> None:
    if placeholders != images:
        raise ValueError(
            f"rollout {item.trajectory.rollout} of question {item.trajectory.question_id}: "
            f"{placeholders} placeholders for {images} images"
        )


def _check_lengths(item: TrainItem, starts: NDArray[np.int64]) -> None:
    """Compare the engine's counts of prompt tokens with the row's.

    Engine and learner process images on their own. If one of them saw an image in another size,
    the learner would train on other inputs than the policy had.

    Args:
        item: with the counts of its first request, and of its last one that gave a token.
        starts: of each token of prompt and response its position in the row, images expanded.
    """
    trajectory = item.trajectory
    stats, fork = trajectory.stats, trajectory.fork
    prompt = len(trajectory.prompt_ids)
    begun = prompt + (fork.prefix_tokens if fork else 0)
    counts = [(stats.prompt_tokens, begun), (stats.last_prompt_tokens, prompt + _last(trajectory))]
    for counted, place in counts:
        # 0: nobody counted, as for scripted trajectories. A response may have ended before.
        if counted and place < len(starts) and counted != starts[place]:
            raise ValueError(
                f"rollout {trajectory.rollout} of question {trajectory.question_id}: the engine "
                f"counted {counted} prompt tokens, the learner's row has {starts[place]}; "
                "do both process images in the same way?"
            )


def _last(trajectory: Trajectory) -> int:
    """Return the response position at which the last segment of the policy begins."""
    ends = np.cumsum([len(segment.token_ids) for segment in trajectory.segments])
    for segment, end in zip(reversed(trajectory.segments), reversed(ends), strict=True):
        if isinstance(segment, PolicySegment):
            return int(end) - len(segment.token_ids)
    return 0


def blank_row(images: StepImages, vision: VisionTokens) -> Row:
    """Return a row that shows the blank image and trains nothing."""
    pads = [vision.image_pad] * images.features(BLANK)
    ids = np.array([vision.vision_start, *pads, vision.vision_end])
    no_tokens, no_values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Row(
        ids=ids,
        keys=np.where(ids == vision.image_pad, -1 - images.number(BLANK), ids),
        images=(BLANK,),
        image_starts=np.array([1]),
        positions=no_tokens,
        targets=no_tokens,
        engine_logprobs=no_values,
        old_logprobs=no_values,
        advantages=no_values,
        weight=0.0,
    )
