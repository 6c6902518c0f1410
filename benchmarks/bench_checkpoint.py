"""A checkpoint (both formats, hashed, flushed, renamed) and a resume (verified) against torch.save and torch.load of as many bytes."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.bench_layouts import medians
from benchmarks.recorded import MODEL
from benchmarks.result import Entry

HIDDEN, LAYERS = 512, 12  # about 40 million parameters: 640 MB of state


def measure() -> list[Entry]:
    import ray

    from learner.config import LearnerConfig
    from learner.learner import Learner

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        model = _larger_model(folder / "model")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
        learner = Learner(
            str(model), LearnerConfig(ranks=2, cpus_per_rank=1, kl_beta=0, deadline_s=300)
        )
        try:
            target = folder / "checkpoint"

            def save() -> float:
                shutil.rmtree(target, ignore_errors=True)
                return _seconds(lambda: learner.save(str(target)))

            saving = medians(
                {"save": save, "torch": lambda: _torch_save(target, folder / "plain.pt")}, 3
            )
            loads = {
                "load": lambda: _seconds(lambda: learner.load(str(target))),
                "torch": lambda: _torch_load(folder / "plain.pt"),
            }
            loading = medians(loads, 3)
        finally:
            learner.shutdown()
            ray.shutdown()
        size = _bytes(target)
    what = f"{size / 1e6:.0f} MB from two ranks"
    save_detail = f"{what}, hashed, flushed to disk and renamed: {saving['save']:.2f} s against {saving['torch']:.2f} s unflushed"
    load_detail = (
        f"{what}, hashes checked: {loading['load']:.2f} s against {loading['torch']:.2f} s"
    )
    return [
        _entry("checkpoint_vs_torch_save", saving["save"] / saving["torch"], save_detail),
        _entry("resume_vs_torch_load", loading["load"] / loading["torch"], load_detail),
    ]


def _entry(name: str, value: float, detail: str) -> Entry:
    return {
        "name": name,
        "value": value,
        "target": 3,
        "better": "lower",
        "unit": "x",
        "detail": detail,
    }


def _larger_model(folder: Path) -> Path:
    """The embedded model's files around random weights of a wider language model."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 3 * HIDDEN,
    }
    config["vision_config"] |= {"out_hidden_size": HIDDEN}
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config)).to(torch.bfloat16).save_pretrained(
        folder
    )
    return folder


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _seconds(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


def _torch_save(like: Path, file: Path) -> float:
    import torch

    tensors = {str(i): torch.randn(_bytes(like) // 4 // 100) for i in range(100)}
    return _seconds(lambda: torch.save(tensors, file))


def _torch_load(file: Path) -> float:
    import torch

    return _seconds(lambda: torch.load(file))
