"""A plain recipe for a model that comes without one: how its engines and tools are started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axpo.config import Recipe, parse_recipe

CONTEXT = 32_768
"""Tokens of a rollout, if the model has so many."""

TURN = 8192


def is_model(target: str) -> bool:
    """Return whether a target is a model: a folder with a config.json, or a name on the hub."""
    folder = Path(target)
    if folder.exists():
        return (folder / "config.json").is_file() and not (folder / "recipe.yaml").exists()
    owner, slash, name = target.partition("/")
    is_name = bool(slash and owner and name) and "/" not in name
    return is_name and not name.endswith((".yaml", ".yml")) and not Path(owner).exists()


def model_recipe(model: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe with which a model is evaluated, one engine a GPU, or one on the CPU.

    Its task is a stand-in: only benchmarks are asked. Whatever does not suit is changed by `--set`.

    Args:
        model: folder or hub name.
        overrides: fields to change, as KEY=VALUE.

    Raises:
        AxpoError: a field is not what it should be.
    """
    context = min(CONTEXT, _context_of(Path(model)))
    gpus = _gpus()
    engine: dict[str, Any] = {"weight_transfer": "nccl", "max_num_seqs": 256}
    if not gpus:
        engine = {"weight_transfer": "shared_memory", "block_size": 32, "kv_cache_gb": 1}
        engine |= {"enforce_eager": True, "dtype": "float32"}
    data = {
        "name": Path(model).name,
        "model": model,
        "task": {"kind": "small_digit"},
        "steps": 1,
        "questions_per_step": 1,
        "learner": {"gpus_per_rank": int(gpus > 0)},
        "rollout": {
            "workers": max(gpus, 1),
            "gpus_per_worker": int(gpus > 0),
            "cpus_per_worker": 1 if gpus else 0.4,
            "max_turns": 6,
            "max_turn_tokens": min(TURN, context // 2),
            "max_context_tokens": context,
            "deadline_s": 1200,
            "engine": engine,
        },
        "tools": {"tools": {"image_zoom_in": {}}},
    }
    return parse_recipe(data, overrides, model)


def _context_of(folder: Path) -> int:
    """Return the longest context of a model folder; of a name on the hub, what is usual."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        of_text = config.get("text_config", config)
        return int(of_text.get("max_position_embeddings", CONTEXT))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        # What is wrong with the file is told when the model is loaded.
        return CONTEXT


def _gpus() -> int:
    # torch is slow to import, and a recipe of one's own does without.
    import torch

    return torch.cuda.device_count()
