"""The learner's gradient on recorded tool trajectories: packed and tree batches against padded ones, and against TRL's loss step."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from benchmarks.recorded import MODEL, train_items, with_large_images
from benchmarks.result import Entry

Form: TypeAlias = Literal["plain", "padded", "packed", "tree"]
QUESTIONS = 8
BUDGET = 8192  # tokens of a micro-batch, the demo's
THREADS = 1  # of a rank, the demo's


class Step:
    """Forward and backward of one batch on one process, planning and collating included; no optimizer, no ZeRO."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

        from learner import attention
        from learner.config import LearnerConfig
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

    def __call__(self, items: Sequence[Any], layout: Form) -> float:
        """Seconds. `layout` "plain" is what Hugging Face's forward asks of a trainer, and peers do: rows in the batch's order, each
        micro-batch padded to its longest, and every row's images encoded for that row."""
        from learner.images import StepImages
        from learner.plan import plan_rows
        from learner.rows import make_row

        self.policy.zero_grad(set_to_none=True)
        started = time.perf_counter()
        images = StepImages(self.processor)
        rows = [make_row(item, images, self.vision.image_pad) for item in items]
        if layout == "plain":
            parts = in_order([len(row.ids) for row in rows], BUDGET)
        else:
            questions = [item.question.id for item in items]
            config = self.config.model_copy(update={"layout": layout})
            steps = plan_rows(rows, questions, lambda key: float(images.patches(key)), config)
            parts = [step[0] for step in steps]
        for part in parts:
            self._backward([rows[i] for i in part], images, layout)
        return time.perf_counter() - started

    def _backward(self, rows: Sequence[Any], images: Any, layout: Form) -> None:
        import torch

        from learner.batch import collate
        from learner.loss import TrainedTokens, policy_loss

        batch = collate(rows, images, self.vision, "padded" if layout == "plain" else layout)
        if layout == "plain":
            pixel_values, image_grid_thw = images.tensors(
                [key for row in rows for key in row.images]
            )
            index = torch.arange(len(image_grid_thw))
            batch = replace(
                batch, pixel_values=pixel_values, image_grid_thw=image_grid_thw, image_index=index
            )
        logprobs, _ = self.policy(batch)
        ones = torch.ones_like(logprobs.detach())
        tokens = TrainedTokens(
            logprobs=logprobs,
            old=batch.old_logprobs,
            advantages=batch.advantages,
            weights=batch.weights,
            items=batch.items,
            correction=ones,
        )
        out = policy_loss(tokens, self.config.objective, self.config.kl_beta)
        out.loss.backward()


def in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive rows whose padded size stays within `budget`."""
    parts: list[list[int]] = []
    for i, length in enumerate(lengths):
        if parts and (len(parts[-1]) + 1) * max(length, *(lengths[j] for j in parts[-1])) <= budget:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def medians(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Seconds of each, measured in turns so that what else runs on the machine hits all alike; the first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            seconds = run()
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def measure() -> list[Entry]:
    items = train_items(QUESTIONS)
    trained = sum(int(item.mask.sum()) for item in items)
    step = Step(MODEL)
    t = medians({form: partial(step, items, form) for form in get_args(Form)}, 2)
    what = (
        f"{len(items)} recorded trajectories (N = 8, forks), {trained} trained tokens, one thread; padded in batch order, images a row "
        f"(sorted by length, images shared: {t['padded']:.2f} s): {t['plain']:.2f} s"
    )
    entries = [
        _entry(
            "packed_vs_padded", t["plain"] / t["packed"], 1.5, f"{what}, packed {t['packed']:.2f} s"
        ),
        _entry("tree_vs_padded_demo", t["plain"] / t["tree"], 2, f"{what}, tree {t['tree']:.2f} s"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        large, model = with_large_images(train_items(1), Path(folder))
        step = Step(model)
        step(large, "tree")  # warm-up
        t = {
            layout: step(large, layout) for layout in ("tree", "plain")
        }  # a minute and more: one turn
    detail = f"{len(large)} trajectories of one question with an image of 1,024 tokens: {t['plain']:.2f} s padded, {t['tree']:.2f} s tree"
    return [*entries, _entry("tree_vs_padded_1024", t["plain"] / t["tree"], 4, detail)]


def _entry(name: str, value: float, target: float, detail: str) -> Entry:
    return {
        "name": name,
        "value": value,
        "target": target,
        "better": "higher",
        "unit": "x",
        "detail": detail,
    }
