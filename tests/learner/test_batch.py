"""Expanding, cutting, planning and collating, on a stand-in image processor."""

import dataclasses

import numpy as np
import pytest
import torch

from learner.batch import StepImages, VisionTokens, collate, make_row, plan
from learner.credit import TrainItem
from rollout_workers.trajectory import EndReason, ObservationSegment, PolicySegment, Trajectory
from tests.learner.helpers import QUESTION, TOKENS

VISION = VisionTokens(image_pad=TOKENS.image_pad, vision_start=TOKENS.vision_start, vision_end=TOKENS.vision_end)


class Processor:
    """4x4 patches, merged 2x2: an image of h x w pixels has h*w/64 features. Counts what it is asked to process."""

    patch_size = 4
    merge_size = 2

    def __init__(self) -> None:
        self.processed = 0

    def get_number_of_image_patches(self, height: int, width: int) -> int:
        return height * width // 16

    def __call__(self, images, return_tensors):
        self.processed += len(images)
        grids = torch.tensor([[1, i.height // 4, i.width // 4] for i in images])
        values = [torch.full((i.height * i.width // 16, 3), float(np.asarray(i)[0, 0, 0])) for i in images]
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
    question = dataclasses.replace(QUESTION, images=(np.full((8, 16, 3), question_image, np.uint8),))
    flags = np.array(mask, bool)
    return TrainItem(question, trajectory, np.where(flags, 2.0, 0.0).astype(np.float32), flags, 0.5)


def row(train_item: TrainItem, images: StepImages):
    keys = images.add(train_item)
    return make_row(train_item, keys, [images.features(k) for k in keys], TOKENS.image_pad)


def test_images_are_expanded_and_positions_point_before_their_targets():
    out = row(item([1, 1, 0, 0, 0, 1, 1]), StepImages(Processor()))
    assert out.ids.tolist() == [1, 9, 9, 20, 21, 30, 9, 31, 22]  # the last target, 23, is no input
    assert out.targets.tolist() == [20, 21, 22, 23]
    assert out.positions.tolist() == [2, 3, 7, 8]
    assert out.old_logprobs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4])
    assert out.weight == 0.5 / 4
    assert len(out.images) == 2


def test_a_row_ends_with_its_last_trained_token():
    out = row(item([1, 1, 0, 0, 0, 0, 0]), StepImages(Processor()))
    assert out.ids.tolist() == [1, 9, 9, 20]
    assert out.positions.tolist() == [2, 3]
    assert len(out.images) == 1


def test_placeholders_and_images_must_agree():
    bare = dataclasses.replace(item([1] * 7), question=QUESTION)
    with pytest.raises(ValueError, match="rollout 0 of question q: 2 placeholders for 1 images"):
        row(bare, StepImages(Processor()))


def test_collate_pads_right_and_encodes_a_shared_image_once():
    processor = Processor()
    images = StepImages(processor)
    rows = [row(item([1, 1, 0, 0, 0, 1, 1]), images), row(item([1, 0, 0, 0, 0, 0, 0], rollout=1), images)]
    batch = collate(rows, images, VISION)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 21, 30, 9, 31, 22], [1, 9, 9, 8, 8, 8, 8, 8, 8]]
    assert batch.mm_token_type_ids.tolist() == [[0, 1, 1, 0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.image_index.tolist() == [0, 1, 0]
    assert batch.image_grid_thw.tolist() == [[1, 2, 4], [1, 2, 2]]
    assert batch.pixel_values[:, 0].tolist() == [7.0] * 8 + [5.0] * 4
    assert (batch.rows.tolist(), batch.positions.tolist()) == ([0, 0, 0, 0, 1], [2, 3, 7, 8, 2])
    assert batch.weights.tolist() == [0.125] * 4 + [0.5]
    assert batch.advantages.tolist() == [2.0] * 5
    collate(rows, images, VISION)
    assert processor.processed == 2


def test_a_micro_batch_without_images_gets_the_blank_one():
    images = StepImages(Processor())
    empty = collate([], images, VISION)
    assert empty.input_ids.tolist() == [[7, 9, 8]]
    assert empty.targets.numel() == 0
    assert empty.image_index.tolist() == [0]
    text = dataclasses.replace(row(item([1, 0, 0, 0, 0, 0, 0]), images), ids=np.array([1, 20]), images=(), positions=np.array([0]))
    batch = collate([text], images, VISION)
    assert batch.input_ids.tolist() == [[1, 20, 8], [7, 9, 8]]
    assert batch.rows.tolist() == [0]


def test_plan_fills_the_fewest_steps_with_neighbours_in_length():
    # Budget 40: rows of 10 go by four, those of 20 by two: 3 micro-batches in 2 steps of 2 ranks, one place left empty.
    steps = plan([10, 20, 10, 20, 10, 20, 10, 10], 2, 40)
    assert len(steps) == 2
    assert all(len(step) == 2 for step in steps)
    assert sorted(i for step in steps for indices in step for i in indices) == list(range(8))
    assert steps == [[[1, 3], [5, 0]], [[2, 4, 6, 7], []]]


def test_plan_keeps_the_budget_and_lets_a_longer_row_stand_alone():
    lengths = [*np.random.default_rng(0).integers(50, 400, 97).tolist(), 5000]
    steps = plan(lengths, 3, 4096)
    bins = [b for step in steps for b in step]
    assert sorted(i for b in bins for i in b) == list(range(98))
    assert [97] in bins
    assert all(len(b) * max(lengths[i] for i in b) <= 4096 for b in bins if b and b != [97])


def test_plan_leaves_a_rank_idle_when_there_is_one_row():
    assert plan([7], 2, 100) == [[[0], []]]
