"""One gradient of TRL's GRPO on the same trajectories, model and threads as ours.

It is its trainer's own `compute_loss` and backward.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.bench_layouts import BUDGET, QUESTIONS, THREADS, Step, in_order
from benchmarks.recorded import MODEL, train_items
from benchmarks.result import Entry, at_least
from benchmarks.timing import medians
from learner.credit import TrainItem
from rollout_workers.images import fetched
from rollout_workers.trajectory import Ids, pixels

if TYPE_CHECKING:
    from torch import Tensor

REPEATS = 2


@dataclass(frozen=True)
class Row:
    """One item as TRL wants it, image placeholders expanded."""

    prompt: list[int]
    completion: list[int]
    mask: list[int]
    advantage: float
    pictures: dict[str, Any]


class TRL:
    """GRPOTrainer around the model, fed with padded micro-batches as it makes them.

    Prompts are padded on the left, completions on the right.
    """

    def __init__(self, folder: str) -> None:
        import torch
        from datasets import Dataset
        from transformers import AutoProcessor, Qwen3VLForConditionalGeneration
        from trl import GRPOConfig, GRPOTrainer

        torch.set_num_threads(THREADS)
        network = Qwen3VLForConditionalGeneration.from_pretrained(
            MODEL, dtype=torch.float32, attn_implementation="sdpa"
        )
        processor = AutoProcessor.from_pretrained(MODEL)
        self.images = processor.image_processor
        self.pad = network.config.image_token_id
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            beta=0.0,
            loss_type="grpo",
            per_device_train_batch_size=8,
            num_generations=8,
            report_to=[],
            disable_tqdm=True,
        )
        # The trainer wants data and a reward; its loss alone is used.
        prompts = Dataset.from_list([{"prompt": "unused"}] * 8)
        self.trainer = GRPOTrainer(
            network, _no_reward, settings, prompts, processing_class=processor
        )
        # Its own training loop sets this; the loss is divided by it.
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model.train()

    def seconds(self, items: Sequence[TrainItem]) -> float:
        """Return the seconds of forward and backward over all items, image processing included."""
        self.model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        rows = [self._row(item) for item in items]
        lengths = [len(row.prompt) + len(row.completion) for row in rows]
        for part in in_order(lengths, BUDGET):
            inputs = self._inputs([rows[i] for i in part])
            self.trainer.compute_loss(self.model, inputs).backward()
        return time.perf_counter() - started

    def _row(self, item: TrainItem) -> Row:
        trajectory = item.trajectory
        shown = [pixels(image) for image in item.question.images]
        images = [Image.fromarray(image) for image in (*shown, *fetched(trajectory.images))]
        pictures = self.images(images, return_tensors="pt")
        tokens = pictures["image_grid_thw"].prod(-1) // self.images.merge_size**2
        # Prompt and completion take their images from the same sequence, in order.
        sizes = iter(tokens.tolist())
        untrained = np.zeros(len(trajectory.prompt_ids), bool)
        prompt, _ = self._expanded(trajectory.prompt_ids, untrained, sizes)
        completion, mask = self._expanded(trajectory.response_ids, item.mask, sizes)
        return Row(prompt, completion, mask, float(item.advantages[item.mask][0]), pictures)

    def _expanded(
        self, ids: Ids, mask: np.ndarray, sizes: Iterator[int]
    ) -> tuple[list[int], list[int]]:
        """Return ids and mask with each image placeholder as often as the image has tokens."""
        tokens: list[int] = []
        flags: list[int] = []
        for token, flag in zip(ids.tolist(), mask, strict=True):
            n = next(sizes) if token == self.pad else 1
            tokens += [token] * n
            flags += [int(flag)] * n
        return tokens, flags

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        prompts, prompt_mask = _padded([row.prompt for row in rows], left=True)
        completions, completion_mask = _padded([row.completion for row in rows], left=False)
        tool_mask, _ = _padded([row.mask for row in rows], left=False)
        everything = torch.cat([prompts, completions], 1)
        return {
            "prompt_ids": prompts,
            "prompt_mask": prompt_mask,
            "completion_ids": completions,
            "completion_mask": completion_mask,
            "tool_mask": tool_mask,
            "advantages": torch.tensor([row.advantage for row in rows]),
            "pixel_values": torch.cat([row.pictures["pixel_values"] for row in rows]),
            "image_grid_thw": torch.cat([row.pictures["image_grid_thw"] for row in rows]),
            "num_images": [len(row.pictures["image_grid_thw"]) for row in rows],
            "mm_token_type_ids": (everything == self.pad).long(),
        }


def measure() -> list[Entry]:
    """Return the entry `step_vs_trl`."""
    items = train_items(QUESTIONS)
    ours = Step(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        theirs = TRL(folder)
        runs = {
            "trl": lambda: theirs.seconds(items),
            "ours": lambda: ours.seconds(items, "tree"),
        }
        seconds = medians(runs, REPEATS)
    detail = (
        f"GRPOTrainer of TRL {metadata.version('trl')} (no reference, no checkpointing), "
        f"same model, tokens, budget and thread: "
        f"{seconds['trl']:.2f} s against {seconds['ours']:.2f} s"
    )
    return [at_least("step_vs_trl", seconds["trl"] / seconds["ours"], 2, "x", detail)]


def _no_reward(completions: Sequence[object], **_: object) -> list[float]:
    return [0.0] * len(completions)


def _padded(parts: Sequence[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Return the parts as one tensor, padded with 0, and a mask of what is no padding."""
    import torch

    width = max(len(part) for part in parts)
    values = torch.zeros(len(parts), width, dtype=torch.long)
    mask = torch.zeros(len(parts), width, dtype=torch.long)
    for b, part in enumerate(parts):
        filled = slice(width - len(part), width) if left else slice(0, len(part))
        values[b, filled] = torch.tensor(part)
        mask[b, filled] = 1
    return values, mask
