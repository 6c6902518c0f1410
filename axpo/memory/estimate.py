"""Estimate how much memory a recipe takes, before anything starts.

The estimate is per GPU, for a rank of the learner and for an engine. It counts weights, gradients,
optimizer states, gathered layers, activations, logits and the KV cache. It does not count CUDA's
context (about 0.5 GiB), NCCL's buffers and fragmentation. The number of parameters follows from the
model's config.json alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.config import Recipe, looks_local
from learner.config import LearnerConfig

GIB = 2**30
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: what is gathered at a time, at most."""

HEAD_CHUNK = 1 << 24
"""learner.head.CHUNK: float32 logits computed at a time. About four tensors have that size."""

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen3-VL that its memory depends on."""

    language: int  # parameters
    vision: int  # parameters
    head: int  # parameters of an untied head
    layers: int
    hidden: int
    intermediate: int
    attention: int  # width of queries
    kv: int  # width of keys, and of values
    adapted: Mapping[str, tuple[int, int]]  # linear layers of one decoder layer: (in, out)

    @property
    def parameters(self) -> int:
        """Return the number of all parameters."""
        return self.language + self.vision + self.head


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Read the numbers from a Qwen3-VL's config.json."""
    text = config["text_config"]
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    head_width = text.get("head_dim") or hidden // text["num_attention_heads"]
    attention = text["num_attention_heads"] * head_width
    kv = text["num_key_value_heads"] * head_width
    intermediate = text["intermediate_size"]
    linear = {
        "q_proj": (hidden, attention),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (attention, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }
    # Norms before attention and MLP, and those of queries and keys.
    norms = 2 * hidden + 2 * head_width
    layer = sum(width_in * width_out for width_in, width_out in linear.values()) + norms
    embedding = text["vocab_size"] * hidden
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return Shape(
        language=embedding + layers * layer + hidden,
        vision=_vision_parameters(config["vision_config"]),
        head=0 if tied else embedding,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        attention=attention,
        kv=kv,
        adapted=linear,
    )


def _vision_parameters(vision: Mapping[str, Any]) -> int:
    """Return the parameters of the vision tower: patches, positions, blocks and mergers."""
    width, inner, out = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["out_hidden_size"],
    )
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    embedding = patch * width + width + vision["num_position_embeddings"] * width
    # Attention with biases, the MLP with biases, two norms with biases.
    block = 4 * width * width + 4 * width + 2 * width * inner + inner + width + 4 * width
    merged = width * vision["spatial_merge_size"] ** 2
    merger = merged * merged + merged + merged * out + out
    deep_mergers = len(vision["deepstack_visual_indexes"]) * (merger + 2 * merged)
    return embedding + vision["depth"] * block + (merger + 2 * width) + deep_mergers


def learner_bytes(shape: Shape, config: LearnerConfig, *, own_reference: bool) -> dict[str, float]:
    """Return the bytes on the device of one rank, by what takes them.

    Args:
        shape: the model.
        config: the learner.
        own_reference: the KL term needs a model of its own.
    """
    b, ranks = BYTES[config.dtype], config.ranks
    trained, all_parameters = shape.parameters, shape.parameters
    if config.lora is not None:
        trained = _adapter_parameters(shape, config.lora.rank, config.lora.targets)
        all_parameters += trained
    # Gradients are float32 (4 bytes a parameter), and AdamW keeps float32 weights and two moments
    # (12 bytes). Only what is trained has them.
    models = all_parameters * (2 if own_reference else 1)
    gathers = ranks > 1 or config.offload_parameters
    return {
        "weights": 0 if config.offload_parameters else models * b / ranks,
        "gathered layers": min(all_parameters, LIVE_PARAMETERS) * b if gathers else 0,
        "gradients": trained * 4 / ranks,
        "optimizer": 0 if config.offload_optimizer else trained * 12 / ranks,
        "activations": _activation_bytes(shape, config),
        "logits": 4 * HEAD_CHUNK * 4,
    }


def _adapter_parameters(shape: Shape, rank: int, targets: tuple[str, ...]) -> int:
    adapted = [size for name, size in shape.adapted.items() if name in targets]
    return shape.layers * rank * sum(width_in + width_out for width_in, width_out in adapted)


def _activation_bytes(shape: Shape, config: LearnerConfig) -> int:
    b, tokens = BYTES[config.dtype], config.micro_batch_tokens
    # Kept for the backward pass of a layer: two norms' inputs and outputs, queries, keys, values,
    # attention's output, the MLP's three.
    width = 4 * shape.hidden + 2 * shape.attention + 2 * shape.kv + 3 * shape.intermediate
    layer = tokens * b * width
    if config.gradient_checkpointing:
        # Of each layer only its input; one layer at a time is computed again.
        return shape.layers * tokens * b * shape.hidden + layer
    return shape.layers * layer


def engine_bytes(shape: Shape, recipe: Recipe) -> tuple[float, float]:
    """Return the bytes on each GPU of one engine.

    Returns:
        Its weights, and the keys and values of one sequence of full length.
    """
    engine = recipe.rollout.engine
    b, split = BYTES[engine.dtype], engine.tensor_parallel_size
    # One key and one value in every layer for each token.
    sequence = 2 * shape.layers * shape.kv * b * recipe.rollout.max_context_tokens
    return shape.parameters * b / split, sequence / split


def estimate(recipe: Recipe, shape: Shape, device_gib: float) -> tuple[list[str], list[str]]:
    """Estimate the memory of a recipe.

    Args:
        recipe: the run.
        shape: its model.
        device_gib: memory of one GPU, in GiB.

    Returns:
        Lines to print, and a warning for a rank or an engine that cannot fit a GPU.
    """
    learner, rollout = recipe.learner, recipe.rollout
    parts = learner_bytes(shape, learner, own_reference=_has_own_reference(recipe))
    rank = sum(parts.values())
    weights, sequence = engine_bytes(shape, recipe)
    memory = device_gib * GIB * rollout.engine.gpu_memory_utilization
    # Without a fixed size vLLM gives the cache all the memory that the weights leave.
    kv_cache_gb = rollout.engine.kv_cache_gb
    cache = memory - weights if kv_cache_gb is None else kv_cache_gb * GIB
    fits = max(0, math.floor(cache / sequence))
    by_part = ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
    lines = [
        f"model: {shape.parameters / 1e6:,.1f} million parameters",
        f"learner, each of {learner.ranks} ranks: {_size(rank)} ({by_part})",
        f"engine, each of {rollout.workers}: weights {_size(weights)}, KV cache {_size(sequence)} "
        f"for a sequence of {rollout.max_context_tokens} tokens; room for {fits} of them at once",
    ]
    warnings = []
    if learner.gpus_per_rank and rank > device_gib * GIB:
        warnings.append(
            f"learner: a rank needs about {rank / GIB:.0f} GiB, a GPU has {device_gib:g}: more "
            "ranks, gradient_checkpointing, offload_optimizer or fewer micro_batch_tokens"
        )
    if rollout.gpus_per_worker and fits < 1:
        warnings.append(
            f"rollout: weights ({weights / GIB:.0f} GiB a GPU) leave no room for one sequence in "
            f"{memory / GIB:.0f} GiB: raise tensor_parallel_size or lower max_context_tokens"
        )
    return lines, warnings


def _has_own_reference(recipe: Recipe) -> bool:
    """Return whether the KL term needs a second model.

    Adapters need none: with them switched off, the policy is its own reference.
    """
    if recipe.learner.kl_beta == 0:
        return False
    return not recipe.learner.lora or recipe.reference not in (None, recipe.model)


def _size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"


def read_config(model: str) -> dict[str, Any] | None:
    """Return the config.json of a model: of a folder, or of the hub.

    From the hub it comes from the local cache, or as that one file; None if the hub does not give
    it.
    """
    if looks_local(model):
        return _read(Path(model) / "config.json")
    import httpx
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return _read(Path(cached))
    try:
        # Not hf_hub_download: without a network that retries for 25 s.
        answer = httpx.get(
            hf_hub_url(model, "config.json"),
            headers=build_hf_headers(),
            timeout=5,
            follow_redirects=True,
        )
        config: dict[str, Any] = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return config


def _read(file: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config
