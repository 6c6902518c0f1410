"""Engine and learner see images in the same number of tokens, at any size.

The prompt that a running engine counts is compared with the row that the learner trains on, with
limits from a recipe. `tests/rollout_workers/test_image_sizes.py` compares pixels, and the folder's
own limits, without running the model: the 62,500 patches of 4000x4000 take a CPU minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from learner.credit import TrainItem
from learner.images import ImageStore, StepImages, image_processor
from learner.rows import make_row
from rollout_workers.chat import Chat
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.image_rule import ImagesConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import Pixels, Question, Trajectory

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


# Width and height in pixels, and the image's tokens with LIMITS, 4 to 256 of them. By hand: sides
# / 32, halves to even. Outside the limits both sides are scaled by one number, then rounded up (to
# reach the lower limit) or down (to stay below the upper one).
SIZES = {
    (1, 1): 2 * 2,
    (20, 20): 2 * 2,
    (200, 1): 29 * 1,  # 905 x 4.5 pixels
    (7, 1000): 1 * 24,  # 5.4 x 765
    (256, 256): 8 * 8,
    (336, 240): 10 * 8,  # 10.5 and 7.5: to even
    (640, 480): 18 * 13,  # 591 x 443
    (2000, 30): 62 * 1,
    (1280, 960): 18 * 13,
    (4096, 64): 128 * 2,
    (3000, 2000): 19 * 13,  # 627 x 418
    (3840, 2160): 21 * 12,  # 683 x 384
    (16384, 82): 226 * 1,  # 7,237 x 36
    (4000, 4000): 16 * 16,
}
LIMITS = ImagesConfig(min_pixels=4096, max_pixels=262144)
CONFIG = RolloutConfig(
    n=2,
    max_turns=1,
    max_turn_tokens=1,
    max_context_tokens=512,
    deadline_s=300,
    cpus_per_worker=0.4,
    engine=EngineConfig(
        dtype="float32",
        block_size=32,
        max_num_seqs=8,
        enforce_eager=True,
        kv_cache_gb=0.25,
        weight_transfer="shared_memory",
    ),
)


class NoTools:
    async def schemas(self):
        return []


def no_reward(question: Question, answer: str | None) -> float:
    return 0.0


def settings_of(model: Path, images: ImagesConfig) -> WorkerSettings:
    return WorkerSettings(str(model), CONFIG, NoTools(), no_reward, run_seed=1, images=images)


def question(size: tuple[int, int]) -> Question:
    width, height = size
    image: Pixels = np.full((height, width, 3), 90, np.uint8)
    return Question(f"{width}x{height}", "Which number?", (image,), "7")


def tokens_of_row(question: Question, rollout: Trajectory, images: StepImages, pad: int) -> int:
    """Return the tokens that the learner's row has for the image of a question.

    `make_row` itself raises if the engine counted others.
    """
    length = len(rollout.response_ids)
    trained = np.ones(length, bool)
    item = TrainItem(question, rollout, trained.astype(np.float32), trained, weight=1.0)
    row = make_row(item, images, pad)
    # The processor makes what it announces.
    images.tensors(row.images)
    (key,) = row.images
    height, width = images.grid(key)
    tokens = int((row.ids == pad).sum())
    assert tokens == height * width
    return tokens


@pytest.fixture(scope="module")
def pool(cluster: None, thinking: Path) -> Iterator[RolloutPool]:
    """Start an engine that sees images with LIMITS."""
    pool = RolloutPool(settings_of(thinking, LIMITS))
    pool.ready()
    yield pool
    pool.shutdown()


def test_the_engine_counts_the_learners_tokens_with_limits(
    pool: RolloutPool, thinking: Path
) -> None:
    pad = Chat.load(str(thinking)).tokens.image_pad
    images = StepImages(ImageStore(image_processor(str(thinking), LIMITS)))
    groups = list(pool.rollout([question(size) for size in SIZES], step=0))
    assert len(groups) == len(SIZES)
    by_engine, by_learner = {}, {}
    for group in groups:
        rollout, asked = group.rollouts[0], group.question
        width, height = map(int, asked.id.split("x"))
        # A placeholder becomes all tokens of its image.
        extra = rollout.stats.prompt_tokens - len(rollout.prompt_ids)
        by_engine[width, height] = extra + 1
        by_learner[width, height] = tokens_of_row(asked, rollout, images, pad)
    assert by_engine == SIZES
    assert by_learner == SIZES
