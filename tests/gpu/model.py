"""A model with the widths of Qwen3-VL-2B, and one rank that trains it in this process."""

from __future__ import annotations

import gc
import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from learner.config import LearnerConfig, RankSettings, Serving
from tests.gpu.device import CUDA, DEVICE

TINY = Path("axpo/models/qwen3-vl-tiny")
VOCABULARY = 151_936 if CUDA else 768
# A quarter of the layers of Qwen3-VL-2B; a dry run is narrow.
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 7,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "depth": 6,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [1, 3, 5],
}
NARROW_TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
NARROW_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "depth": 2,
    "num_heads": 4,
    "out_hidden_size": 128,
    "deepstack_visual_indexes": [0],
}


def build(folder: Path) -> str:
    """Write a model of random bfloat16 weights, with the embedded model's tokenizer."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"] |= (TEXT if CUDA else NARROW_TEXT) | {"vocab_size": VOCABULARY}
    config["text_config"]["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20] if CUDA else [6, 5, 5],
        "mrope_interleaved": True,
    }
    config["vision_config"] |= VISION if CUDA else NARROW_VISION
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen3VLForConditionalGeneration._from_config(
            Qwen3VLConfig.from_pretrained(folder), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    return str(folder)


@cache
def port() -> int:
    """Return the port of the only process group of this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@contextmanager
def one_rank(
    folder: str, *, deterministic: bool = False, seed: int = 0, **settings: Any
) -> Iterator[Any]:
    """Give a `LearnerRank` on the device, and free its memory at the end."""
    from learner.rank import LearnerRank

    usual: dict[str, Any] = {
        "ranks": 1,
        "gpus_per_rank": int(CUDA),
        "dtype": "bfloat16",
        "kl_beta": 0,
        "lr": 1e-5,
        "gradient_checkpointing": True,
    }
    config = LearnerConfig(**usual | settings)
    serving = Serving(deterministic=deterministic)
    # Without Ray's address: the process group has this process alone.
    made = LearnerRank(RankSettings(folder, folder, config, serving, seed, 0, "127.0.0.1", port()))
    try:
        yield made
    finally:
        _empty(made)
        del made
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def _empty(rank: Any) -> None:
    """Take the storages of a rank that nobody uses: DeepSpeed's circles keep its objects."""
    from learner import parking

    rank.memory.reclaim()
    for engine in rank.memory._engines:
        for tensor in (*parking._kept([engine]), *parking._scratch([engine])):
            if tensor.is_cuda:
                tensor.untyped_storage().resize_(0)
