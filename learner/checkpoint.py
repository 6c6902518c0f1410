"""Writing the policy as a Hugging Face folder: safetensors shards, the config, and the model folder's other files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learner.weights import gathered, plan_buckets

SHARD_BYTES = 4 << 30
WEIGHT_FILES = (".safetensors", ".bin", ".index.json")


def save_hf(model: nn.Module, source: Path, folder: Path, dtype: torch.dtype, rank: int) -> None:
    """Write weights as `dtype` and copy config, tokenizer and processor files from the model folder `source`. Collective."""
    from safetensors.torch import save_file

    shards = len(plan_buckets(model.named_parameters(), SHARD_BYTES))
    where: dict[str, str] = {}
    for i, tensors in enumerate(gathered(model, SHARD_BYTES)):
        if rank == 0:
            file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors}, folder / file, {"format": "pt"})
            where |= {name: file for name, _ in tensors}
    if rank != 0:
        return
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}, indent=2))
    for file_ in source.iterdir():
        if file_.is_file() and not file_.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file_, folder / file_.name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(_with_dtype(config, str(dtype).split(".")[-1]), indent=2))


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with every stated dtype (its sub-configs may have their own) replaced."""
    out = {key: _with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    return out | {key: dtype for key in ("dtype", "torch_dtype") if key in out}
