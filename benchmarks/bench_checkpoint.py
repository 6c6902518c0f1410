"""A checkpoint and a resume against torch.save and torch.load of as many bytes.

A checkpoint has both formats and is hashed, flushed and renamed; a resume verifies the hashes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ray

from benchmarks.recorded import MODEL
from benchmarks.result import Entry, at_most
from benchmarks.timing import medians, timed
from learner.config import LearnerConfig
from learner.learner import Learner

# About 40 million parameters: 640 MB of state.
HIDDEN, LAYERS = 512, 12
CONFIG = LearnerConfig(ranks=2, cpus_per_rank=1, kl_beta=0, deadline_s=300)
REPEATS = 3
TENSORS = 100
"""Tensors that torch saves and loads."""


def measure() -> list[Entry]:
    """Return the entries `checkpoint_vs_torch_save` and `resume_vs_torch_load`."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        checkpoint, plain = folder / "checkpoint", folder / "plain.pt"
        model = _larger_model(folder / "model")
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
        learner = Learner(str(model), CONFIG)

        def save() -> float:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return _seconds(lambda: learner.save(str(checkpoint)))

        def load() -> float:
            return _seconds(lambda: learner.load(str(checkpoint)))

        try:
            # torch.save does not flush to the disk, so the comparison is in its favour.
            torch_save = partial(_torch_save, checkpoint, plain)
            torch_load = partial(_torch_load, plain)
            saving = medians({"save": save, "torch": torch_save}, REPEATS)
            loading = medians({"load": load, "torch": torch_load}, REPEATS)
        finally:
            learner.shutdown()
            ray.shutdown()
        # The last checkpoint is still there, and is what a resume read.
        size = _bytes(checkpoint)
    what = f"{size / 1e6:.0f} MB from two ranks"
    save_detail = (
        f"{what}, hashed, flushed to disk and renamed: "
        f"{saving['save']:.2f} s against {saving['torch']:.2f} s unflushed"
    )
    load_detail = (
        f"{what}, hashes checked: {loading['load']:.2f} s against {loading['torch']:.2f} s"
    )
    return [
        _ratio("checkpoint_vs_torch_save", saving["save"] / saving["torch"], save_detail),
        _ratio("resume_vs_torch_load", loading["load"] / loading["torch"], load_detail),
    ]


def _ratio(name: str, value: float, detail: str) -> Entry:
    return at_most(name, value, 3, "x", detail)


def _larger_model(folder: Path) -> Path:
    """Write random weights of a wider language model into a copy of the embedded model."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    # Tokenizer and processor are the embedded model's; the weights are replaced.
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 3 * HIDDEN,
    }
    config["vision_config"] |= {"out_hidden_size": HIDDEN}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds(work: Callable[[], object]) -> float:
    _, seconds = timed(work)
    return seconds


def _torch_save(like: Path, file: Path) -> float:
    """Save as many bytes as the folder `like` has; return the seconds."""
    import torch

    numbers = _bytes(like) // 4 // TENSORS
    tensors = {str(i): torch.randn(numbers) for i in range(TENSORS)}
    return _seconds(lambda: torch.save(tensors, file))


def _torch_load(file: Path) -> float:
    import torch

    return _seconds(lambda: torch.load(file))
