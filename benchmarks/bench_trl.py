"""One gradient of TRL's GRPO on the same trajectories, model and threads as ours: its trainer's own `compute_loss` and backward."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from benchmarks.bench_layouts import BUDGET, QUESTIONS, THREADS, Step, in_order, medians
from benchmarks.recorded import MODEL, train_items
from benchmarks.result import Entry


class TRL:
    """GRPOTrainer around the model, fed with padded micro-batches as it makes them: prompts on the left, completions on the right."""

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
        prompts = Dataset.from_list([{"prompt": "unused"}] * 8)
        unused = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
        self.trainer = GRPOTrainer(network, unused, settings, prompts, processing_class=processor)
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model.train()

    def __call__(self, items: Sequence[Any]) -> float:
        """Seconds of forward and backward over all items, image processing included."""
        from PIL import Image

        self.model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        rows = []
        for item in items:
            t = item.trajectory
            pictures = self.images(
                [Image.fromarray(i) for i in (*item.question.images, *t.images)],
                return_tensors="pt",
            )
            features = iter(
                (pictures["image_grid_thw"].prod(-1) // self.images.merge_size**2).tolist()
            )
            prompt, _ = self._expand(t.prompt_ids, [False] * len(t.prompt_ids), features)
            completion, mask = self._expand(t.response_ids, item.mask, features)
            rows.append((prompt, completion, mask, float(item.advantages[item.mask][0]), pictures))
        for part in in_order([len(r[0]) + len(r[1]) for r in rows], BUDGET):
            self.trainer.compute_loss(self.model, self._inputs([rows[i] for i in part])).backward()
        return time.perf_counter() - started

    def _expand(self, ids: Any, mask: Any, features: Any) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        flags: list[int] = []
        for token, flag in zip(ids.tolist(), mask, strict=True):
            n = next(features) if token == self.pad else 1
            tokens += [token] * n
            flags += [int(flag)] * n
        return tokens, flags

    def _inputs(self, rows: Sequence[Any]) -> dict[str, Any]:
        import torch

        def padded(parts: list[list[int]], left: bool) -> tuple[Any, Any]:
            width = max(map(len, parts))
            values, mask = (
                torch.zeros(len(parts), width, dtype=torch.long),
                torch.zeros(len(parts), width, dtype=torch.long),
            )
            for b, part in enumerate(parts):
                where = slice(width - len(part), width) if left else slice(0, len(part))
                values[b, where], mask[b, where] = torch.tensor(part), 1
            return values, mask

        prompts, prompt_mask = padded([row[0] for row in rows], left=True)
        completions, completion_mask = padded([row[1] for row in rows], left=False)
        whole = torch.cat([prompts, completions], 1)
        return {
            "prompt_ids": prompts,
            "prompt_mask": prompt_mask,
            "completion_ids": completions,
            "completion_mask": completion_mask,
            "tool_mask": padded([row[2] for row in rows], left=False)[0],
            "advantages": torch.tensor([row[3] for row in rows]),
            "pixel_values": torch.cat([row[4]["pixel_values"] for row in rows]),
            "image_grid_thw": torch.cat([row[4]["image_grid_thw"] for row in rows]),
            "num_images": [len(row[4]["image_grid_thw"]) for row in rows],
            "mm_token_type_ids": (whole == self.pad).long(),
        }


def measure() -> list[Entry]:
    items = train_items(QUESTIONS)
    ours = Step(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        theirs = TRL(folder)
        t = medians({"trl": lambda: theirs(items), "ours": lambda: ours(items, "tree")}, 2)
    detail = (
        f"GRPOTrainer of TRL {metadata.version('trl')} (no reference, no checkpointing), same model, tokens, budget and thread: "
        f"{t['trl']:.2f} s against {t['ours']:.2f} s"
    )
    return [
        {
            "name": "step_vs_trl",
            "value": t["trl"] / t["ours"],
            "target": 2,
            "better": "higher",
            "unit": "x",
            "detail": detail,
        }
    ]
