"""The learner's gradient on recorded trajectories: packed and tree batches against padded ones.

`bench_trl` compares the same gradient with TRL's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from benchmarks.recorded import MODEL, train_items, with_large_images
from benchmarks.result import Entry, at_least
from benchmarks.timing import medians
from learner.config import Layout, LearnerConfig
from learner.credit import TrainItem

if TYPE_CHECKING:
    from learner.batch import MicroBatch
    from learner.images import ImageKey, StepImages
    from learner.rows import Row

Form: TypeAlias = Literal["plain", "padded", "packed", "tree"]
"""The learner's layouts, and `plain`.

`plain` is what Hugging Face's forward asks of a trainer, and what peers do: rows in the batch's
order, each micro-batch padded to its longest, and every row's images encoded for that row.
"""

QUESTIONS = 8
BUDGET = 8192  # tokens of a micro-batch, the demo's
THREADS = 1  # of a rank, the demo's
LARGE_IMAGE = 1024  # tokens
REPEATS = 2


class Step:
    """Forward and backward of one batch on one process, planning and collating included.

    There is no optimizer and no ZeRO.
    """

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

        from learner import attention
        from learner.policy import ATTENTION, Policy
        from learner.rows import VisionTokens

        torch.set_num_threads(THREADS)
        attention.register()
        network = Qwen3VLForConditionalGeneration.from_pretrained(
            model, dtype=torch.float32, attn_implementation=ATTENTION
        )
        config = network.config
        self.vision = VisionTokens(
            config.image_token_id, config.vision_start_token_id, config.vision_end_token_id
        )
        banned = (
            config.vision_start_token_id,
            config.vision_end_token_id,
            config.image_token_id,
            config.video_token_id,
        )
        self.policy = Policy(network, banned, 1.0)
        self.processor = AutoProcessor.from_pretrained(model).image_processor
        self.config = LearnerConfig(ranks=1, micro_batch_tokens=BUDGET)

    def seconds(self, items: Sequence[TrainItem], form: Form) -> float:
        """Return the seconds that one gradient takes."""
        from learner.images import ImageStore, StepImages
        from learner.rows import make_row

        # Freed, not zeroed: every measurement starts without gradients in memory.
        self.policy.zero_grad(set_to_none=True)
        started = time.perf_counter()
        images = StepImages(ImageStore(self.processor))
        rows = [make_row(item, images, self.vision.image_pad) for item in items]
        if form == "plain":
            batches = self._plain_batches(rows, images)
        else:
            batches = self._batches(rows, items, images, form)
        for batch in batches:
            self._backward(batch)
        return time.perf_counter() - started

    def _plain_batches(self, rows: Sequence[Row], images: StepImages) -> Iterator[MicroBatch]:
        import torch

        from learner.batch import collate

        for part in in_order([len(row.ids) for row in rows], BUDGET):
            chosen = [rows[i] for i in part]
            batch = collate(chosen, images, self.vision, "padded")
            # The learner encodes each distinct image once; here every row has its own.
            keys: list[ImageKey] = []
            for row in chosen:
                keys += row.images
            if not keys:
                yield batch
                continue
            pixel_values, image_grid_thw = images.tensors(keys)
            yield replace(
                batch,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                image_index=torch.arange(len(image_grid_thw)),
            )

    def _batches(
        self, rows: Sequence[Row], items: Sequence[TrainItem], images: StepImages, layout: Layout
    ) -> Iterator[MicroBatch]:
        from learner.batch import collate
        from learner.plan import plan_rows

        def image_cost(key: ImageKey) -> float:
            return float(images.patches(key))

        questions = [item.question.id for item in items]
        config = self.config.model_copy(update={"layout": layout})
        for (part,) in plan_rows(rows, questions, image_cost, config):
            yield collate([rows[i] for i in part], images, self.vision, layout)

    def _backward(self, batch: MicroBatch) -> None:
        import torch

        from learner.loss import TrainedTokens, policy_loss

        logprobs, _ = self.policy(batch)
        tokens = TrainedTokens(
            logprobs=logprobs,
            old=batch.old_logprobs,
            advantages=batch.advantages,
            weights=batch.weights,
            items=batch.items,
            correction=torch.ones_like(logprobs.detach()),
        )
        policy_loss(tokens, self.config.objective, self.config.kl_beta).loss.backward()


def in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return parts of consecutive rows whose padded size stays within a budget.

    Args:
        lengths: tokens of each row.
        budget: tokens of a part, padded; a longer row stands alone.
    """
    parts: list[list[int]] = []
    for i, length in enumerate(lengths):
        if parts:
            longest = max(length, *(lengths[j] for j in parts[-1]))
            if (len(parts[-1]) + 1) * longest <= budget:
                parts[-1].append(i)
                continue
        parts.append([i])
    return parts


def measure() -> list[Entry]:
    """Return the entries of the demo's images, and that of large ones."""
    return [*_demo(), _large()]


def _demo() -> list[Entry]:
    # The same items in every form, so that the forms differ in the layout alone.
    items = train_items(QUESTIONS)
    trained = sum(int(item.mask.sum()) for item in items)
    step = Step(MODEL)
    runs = {form: partial(step.seconds, items, form) for form in get_args(Form)}
    seconds = medians(runs, REPEATS)
    plain, packed, tree = seconds["plain"], seconds["packed"], seconds["tree"]
    what = (
        f"{len(items)} recorded trajectories (N = 8, forks), {trained} trained tokens, "
        f"one thread; padded in batch order, images a row "
        f"(sorted by length, images shared: {seconds['padded']:.2f} s): {plain:.2f} s"
    )
    return [
        # Lengths are much the same, so there is little padding to save; see `bench_lengths`.
        at_least("packed_vs_padded_demo", plain / packed, 1, "x", f"{what}, packed {packed:.2f} s"),
        at_least("tree_vs_padded_demo", plain / tree, 2, "x", f"{what}, tree {tree:.2f} s"),
    ]


def _large() -> Entry:
    with tempfile.TemporaryDirectory() as folder:
        items, model = with_large_images(train_items(1), Path(folder), LARGE_IMAGE)
        step = Step(model)
        step.seconds(items, "tree")  # warm-up
        # A minute and more: one turn.
        tree = step.seconds(items, "tree")
        plain = step.seconds(items, "plain")
    detail = (
        f"{len(items)} trajectories of one question with an image of {LARGE_IMAGE:,} tokens: "
        f"{plain:.2f} s padded, {tree:.2f} s tree"
    )
    return at_least("tree_vs_padded_1024", plain / tree, 4, "x", detail)
