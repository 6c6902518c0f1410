"""Expanding, cutting, planning and collating, on a stand-in image processor."""

import dataclasses

import numpy as np
import pytest
import torch

from learner.batch import collate
from learner.credit import TrainItem
from learner.images import ImageStore, StepImages
from learner.rows import Row, VisionTokens, make_row
from rollout_workers.handing_over import with_images
from rollout_workers.images import StoredImage, digest_of
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    ObservationSegment,
    PolicySegment,
    RolloutStats,
    Trajectory,
)
from tests.learner.helpers import QUESTION
from tests.tokens import TOKENS

VISION = VisionTokens(
    image_pad=TOKENS.image_pad, vision_start=TOKENS.vision_start, vision_end=TOKENS.vision_end
)


class Processor:
    """Cut images into 4x4 patches, merged 2x2: h x w pixels have h*w/64 features.

    It counts the images that it is asked to process.
    """

    patch_size = 4
    merge_size = 2

    def __init__(self) -> None:
        self.processed = 0

    def get_number_of_image_patches(self, height: int, width: int) -> int:
        return height * width // 16

    def __call__(self, images, return_tensors):
        self.processed += len(images)
        grids = torch.tensor([[1, i.height // 4, i.width // 4] for i in images])
        values = [
            torch.full((i.height * i.width // 16, 3), float(np.asarray(i)[0, 0, 0])) for i in images
        ]
        return {"pixel_values": torch.cat(values), "image_grid_thw": grids}


def item(mask: list[int], question_image: int = 7, rollout: int = 0) -> TrainItem:
    """Prompt: 1 <img 8x16>, response: 20 21 | 30 <img 8x8> 31 | 22 23."""
    response = [20, 21, 30, 9, 31, 22, 23]
    segments = (
        PolicySegment(np.array([20, 21], np.int32), np.array([-0.1, -0.2], np.float32), 0),
        ObservationSegment(np.array([30, 9, 31], np.int32), (np.full((8, 8, 3), 5, np.uint8),)),
        PolicySegment(np.array([22, 23], np.int32), np.array([-0.3, -0.4], np.float32), 0),
    )
    trajectory = Trajectory("q", rollout, np.array([1, 9], np.int32), segments, EndReason.ANSWERED)
    assert trajectory.response_ids.tolist() == response
    question = dataclasses.replace(
        QUESTION, images=(np.full((8, 16, 3), question_image, np.uint8),)
    )
    flags = np.array(mask, bool)
    return TrainItem(question, trajectory, np.where(flags, 2.0, 0.0).astype(np.float32), flags, 0.5)


def row(train_item: TrainItem, images: StepImages) -> Row:
    return make_row(train_item, images, TOKENS.image_pad)


def test_images_are_expanded_and_positions_point_before_their_targets():
    out = row(item([1, 1, 0, 0, 0, 1, 1]), StepImages(ImageStore(Processor())))
    assert out.ids.tolist() == [1, 9, 9, 20, 21, 30, 9, 31, 22]  # the last target, 23, is no input
    assert out.targets.tolist() == [20, 21, 22, 23]
    assert out.positions.tolist() == [2, 3, 7, 8]
    assert out.old_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    assert out.weight == 0.5 / 4
    assert len(out.images) == 2


def test_a_row_ends_with_its_last_trained_token():
    out = row(item([1, 1, 0, 0, 0, 0, 0]), StepImages(ImageStore(Processor())))
    assert out.ids.tolist() == [1, 9, 9, 20]
    assert out.positions.tolist() == [2, 3]
    assert len(out.images) == 1


def test_placeholders_and_images_must_agree():
    bare = dataclasses.replace(item([1] * 7), question=QUESTION)
    with pytest.raises(ValueError, match="rollout 0 of question q: 2 placeholders for 1 images"):
        row(bare, StepImages(ImageStore(Processor())))


def counted(train_item: TrainItem, first: int, last: int) -> TrainItem:
    """Return the item with what the engine counted of its first and its last request."""
    stats = RolloutStats(prompt_tokens=first, last_prompt_tokens=last)
    trajectory = dataclasses.replace(train_item.trajectory, stats=stats)
    return dataclasses.replace(train_item, trajectory=trajectory)


def test_the_engines_counts_of_prompt_tokens_are_the_rows():
    """The prompt is 1 and an image of two tokens; the last request adds 20, 21, 30, one, 31."""
    rollout = item([1, 1, 0, 0, 0, 1, 1])
    fork = ForkPoint(source=0, index=0, prefix_tokens=1)
    forked = dataclasses.replace(
        rollout, trajectory=dataclasses.replace(rollout.trajectory, fork=fork)
    )
    # A fork's first request has its prefix, one token more. Nobody counted: 0.
    for good in (counted(rollout, 3, 8), counted(forked, 4, 8), counted(rollout, 0, 0)):
        row(good, StepImages(ImageStore(Processor())))
    for bad, numbers in (
        (counted(rollout, 4, 8), "4 prompt tokens, the learner's row has 3"),
        (counted(rollout, 3, 9), "9 prompt tokens, the learner's row has 8"),
        (counted(forked, 3, 8), "3 prompt tokens, the learner's row has 4"),
    ):
        with pytest.raises(ValueError, match=f"rollout 0 of question q: the engine .* {numbers}"):
            row(bad, StepImages(ImageStore(Processor())))


def test_the_passes_of_an_update_process_an_image_once():
    processor = Processor()
    store = ImageStore(processor)
    for _ in range(2):
        images = StepImages(store)
        rows = [row(item([1] * 7), images), row(item([1] * 7, rollout=1), images)]
        collate(rows, images, VISION, "tree")
    assert processor.processed == 2


def test_an_image_that_no_later_micro_batch_needs_is_forgotten():
    for keep, processed in ((False, 3), (True, 2)):
        processor = Processor()
        store = ImageStore(processor, keep=keep)
        images = StepImages(store)
        (shown,) = [row(item([1] * 7), images).images]
        images.tensors(shown)
        store.forget({shown[0]})
        images.tensors(shown)
        assert processor.processed == processed


def test_equal_images_are_one_whatever_array_holds_them():
    store = ImageStore(Processor())
    one, copy, other = (np.full((8, 8, 3), value, np.uint8) for value in (5, 5, 6))
    turned = np.full((4, 16, 3), 5, np.uint8)
    store.hash([one, copy])
    assert store.key_of(one) == store.key_of(copy)
    assert len({store.key_of(image) for image in (one, copy, other, turned)}) == 3


def test_a_row_is_planned_without_pixels_and_its_own_are_fetched_later(monkeypatch):
    """Two questions: one of this rank, whose images it fetches, and one of another."""
    plain = [item([1] * 7), item([1] * 7, question_image=8)]
    expected = row(plain[0], StepImages(ImageStore(Processor())))
    fetched = []

    def fetch(image):
        fetched.append(image)
        height, width = (8, 8) if isinstance(image, StoredImage) else (8, 16)
        return np.full((height, width, 3), 5, np.uint8)

    monkeypatch.setattr("learner.images.pixels", fetch)
    processor = Processor()
    images = StepImages(ImageStore(processor))
    stored = [in_the_store(one, f"question {i}") for i, one in enumerate(plain)]
    rows = [row(one, images) for one in stored]
    assert fetched == []
    for name in ("ids", "keys", "image_starts", "positions", "targets", "advantages"):
        assert np.array_equal(getattr(rows[0], name), getattr(expected, name)), name
    collate(rows[:1], images, VISION, "tree")
    assert fetched == ["object of question 0", stored[0].trajectory.images[0]]


def in_the_store(train_item: TrainItem, question_id: str) -> TrainItem:
    """Return the item as the learner gets it: with references and sizes instead of pixels."""
    question = dataclasses.replace(
        train_item.question,
        id=question_id,
        images=(f"object of {question_id}",),
        image_sizes=((8, 16),),
    )

    def store(image):
        return StoredImage(digest_of(image), 8, 8, 0, "object of a tool")

    return dataclasses.replace(
        train_item, question=question, trajectory=with_images(train_item.trajectory, store)
    )


def test_padded_rows_encode_a_shared_image_once():
    processor = Processor()
    images = StepImages(ImageStore(processor))
    rows = [
        row(item([1, 1, 0, 0, 0, 1, 1]), images),
        row(item([1, 0, 0, 0, 0, 0, 0], rollout=1), images),
    ]
    batch = collate(rows, images, VISION, "padded")
    assert batch.input_ids.tolist() == [
        [1, 9, 9, 20, 21, 30, 9, 31, 22],
        [1, 9, 9, 8, 8, 8, 8, 8, 8],
    ]
    assert batch.tree is None
    assert batch.position_ids[:, 0].tolist() == [
        [0, 1, 1, 3, 4, 5, 6, 7, 8],
        [0, 1, 1, 3, 4, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.image_grid_thw.tolist() == [[1, 2, 4], [1, 2, 2]]
    assert batch.pixel_values[:, 0].tolist() == [7.0] * 8 + [5.0] * 4
    assert (batch.items.tolist(), batch.positions.tolist()) == (
        [0, 0, 0, 0, 1],
        [2, 3, 7, 8, 9 + 2],
    )
    assert batch.weights.tolist() == [0.125] * 4 + [0.5]
    assert batch.advantages.tolist() == [2.0] * 5
    collate(rows, images, VISION, "padded")
    assert processor.processed == 2


def test_packed_rows_lie_side_by_side():
    images = StepImages(ImageStore(Processor()))
    rows = [
        row(item([1, 1, 0, 0, 0, 1, 1]), images),
        row(item([1, 1, 0, 0, 0, 0, 0], rollout=1), images),
    ]
    batch = collate(rows, images, VISION, "packed")
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 21, 30, 9, 31, 22, 1, 9, 9, 20]]
    assert batch.position_ids[2, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3]
    assert batch.tree.ends.tolist() == [9] * 9 + [13] * 4
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.positions.tolist() == [2, 3, 7, 8, 11, 12]


def test_a_tree_holds_a_shared_prefix_and_its_images_once():
    images = StepImages(ImageStore(Processor()))
    other = item([1, 1, 0, 0, 0, 1, 1])
    segments = (
        *other.trajectory.segments[:2],
        PolicySegment(np.array([24, 23], np.int32), np.zeros(2, np.float32), 0),
    )
    fork = dataclasses.replace(
        other, trajectory=dataclasses.replace(other.trajectory, segments=segments)
    )
    elsewhere = item([1, 1, 0, 0, 0, 0, 0], question_image=8)
    elsewhere = dataclasses.replace(
        elsewhere, question=dataclasses.replace(elsewhere.question, id="other")
    )
    rows = [row(i, images) for i in (other, fork, elsewhere)]
    batch = collate(rows, images, VISION, "tree")
    # The continuation repeats all but its last input token. The other question shows another image
    # and shares only the 1 before it.
    shared = [1, 9, 9, 20, 21, 30, 9, 31]
    assert sorted(batch.input_ids[0].tolist()) == sorted([*shared, 22, 24, 9, 9, 20])
    assert len(batch.image_index) == 3
    assert batch.input_ids[0, batch.positions].tolist() == [9, 20, 31, 22, 9, 20, 31, 24, 9, 20]
    assert batch.positions[:3].tolist() == batch.positions[4:7].tolist()


def test_a_micro_batch_without_images_gets_the_blank_one():
    images = StepImages(ImageStore(Processor()))
    for layout in ("tree", "packed", "padded"):
        empty = collate([], images, VISION, layout)
        assert empty.input_ids.tolist() == [[7, 9, 8]]
        assert empty.targets.numel() == 0
        assert empty.image_index.tolist() == [0]
    text = row(item([1, 0, 0, 0, 0, 0, 0]), images)
    text = dataclasses.replace(
        text,
        ids=np.array([1, 20]),
        keys=np.array([1, 20]),
        images=(),
        image_starts=np.zeros(0, int),
        positions=np.array([0]),
    )
    batch = collate([text], images, VISION, "padded")
    assert batch.input_ids.tolist() == [[1, 20, 8], [7, 9, 8]]
    assert batch.items.tolist() == [0]
    assert collate([text], images, VISION, "packed").input_ids.tolist() == [[1, 20, 7, 9, 8]]
