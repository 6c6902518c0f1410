"""How much memory a recipe takes, before anything starts: an estimate per GPU for a learner's rank and for an engine.

Counted are weights, gradients, optimizer states, gathered layers, activations, logits, the KV cache; not counted are CUDA's context
(about 0.5 GiB), NCCL's buffers and fragmentation. Parameters follow from the model's config.json alone.
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
LIVE_PARAMETERS = (
    1_000_000_000  # DeepSpeed's stage3_max_live_parameters: gathered at a time, at most
)
HEAD_CHUNK = 1 << 24  # learner.head.CHUNK, float32 logits, about four tensors of that size at once
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A Qwen3-VL by its numbers."""

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
        return self.language + self.vision + self.head


def shape_of(config: Mapping[str, Any]) -> Shape:
    """From a Qwen3-VL's config.json."""
    text, vision = config["text_config"], config["vision_config"]
    h, inner, n = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    d = text.get("head_dim") or h // text["num_attention_heads"]
    q, kv = text["num_attention_heads"] * d, text["num_key_value_heads"] * d
    linear = {
        "q_proj": (h, q),
        "k_proj": (h, kv),
        "v_proj": (h, kv),
        "o_proj": (q, h),
        "gate_proj": (h, inner),
        "up_proj": (h, inner),
        "down_proj": (inner, h),
    }
    layer = sum(a * b for a, b in linear.values()) + 2 * h + 2 * d
    embedding = text["vocab_size"] * h
    v, vi, merged = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["hidden_size"] * vision["spatial_merge_size"] ** 2,
    )
    patch = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = 4 * v * v + 4 * v + 2 * v * vi + vi + v + 4 * v
    merger = (
        merged * merged + merged + merged * vision["out_hidden_size"] + vision["out_hidden_size"]
    )
    deep = len(vision["deepstack_visual_indexes"])
    tower = (
        patch * v
        + v
        + vision["num_position_embeddings"] * v
        + vision["depth"] * block
        + (merger + 2 * v)
        + deep * (merger + 2 * merged)
    )
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return Shape(
        embedding + n * layer + h, tower, 0 if tied else embedding, n, h, inner, q, kv, linear
    )


def learner_bytes(shape: Shape, config: LearnerConfig, own_reference: bool) -> dict[str, float]:
    """Bytes on the device of one rank. `own_reference`: the KL term needs a model of its own."""
    b, ranks = BYTES[config.dtype], config.ranks
    trained = shape.parameters
    if config.lora is not None:
        adapted = [size for name, size in shape.adapted.items() if name in config.lora.targets]
        trained = shape.layers * config.lora.rank * sum(a + b_ for a, b_ in adapted)
    whole = shape.parameters + (trained if config.lora is not None else 0)
    tokens = config.micro_batch_tokens
    # Kept for the backward pass of a layer: two norms' inputs and outputs, queries, keys, values, attention's output, the MLP's three.
    kept = (
        tokens
        * b
        * (4 * shape.hidden + 2 * shape.attention + 2 * shape.kv + 3 * shape.intermediate)
    )
    activations = (
        shape.layers * tokens * b * shape.hidden + kept
        if config.gradient_checkpointing
        else shape.layers * kept
    )
    models = whole * (2 if own_reference else 1)
    return {
        "weights": 0 if config.offload_parameters else models * b / ranks,
        "gathered layers": min(whole, LIVE_PARAMETERS) * b
        if ranks > 1 or config.offload_parameters
        else 0,
        "gradients": trained * 4 / ranks,
        "optimizer": 0 if config.offload_optimizer else trained * 12 / ranks,
        "activations": activations,
        "logits": 4 * HEAD_CHUNK * 4,
    }


def engine_bytes(shape: Shape, recipe: Recipe) -> tuple[float, float]:
    """Bytes on each GPU of one engine: its weights, and the keys and values of one sequence of full length."""
    engine = recipe.rollout.engine
    b, split = BYTES[engine.dtype], engine.tensor_parallel_size
    return (
        shape.parameters * b / split,
        2 * shape.layers * shape.kv * b * recipe.rollout.max_context_tokens / split,
    )


def estimate(recipe: Recipe, shape: Shape, device_gib: float) -> tuple[list[str], list[str]]:
    """Lines to print, and warnings where a rank or an engine cannot fit a device of `device_gib`."""
    learner, rollout = recipe.learner, recipe.rollout
    own_reference = learner.kl_beta > 0 and not (
        learner.lora and recipe.reference in (None, recipe.model)
    )
    parts = learner_bytes(shape, learner, own_reference)
    rank = sum(parts.values())
    weights, sequence = engine_bytes(shape, recipe)
    budget = device_gib * GIB * rollout.engine.gpu_memory_utilization
    cache = (
        budget - weights if rollout.engine.kv_cache_gb is None else rollout.engine.kv_cache_gb * GIB
    )
    fits = max(0, math.floor(cache / sequence))
    lines = [
        f"model: {shape.parameters / 1e6:,.1f} million parameters",
        f"learner, each of {learner.ranks} ranks: {_size(rank)} ("
        + ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)
        + ")",
        f"engine, each of {rollout.workers}: weights {_size(weights)}, KV cache {_size(sequence)} for a sequence of "
        f"{rollout.max_context_tokens} tokens; room for {fits} of them at once",
    ]
    warnings = []
    if learner.gpus_per_rank and rank > device_gib * GIB:
        warnings.append(
            f"learner: a rank needs about {rank / GIB:.0f} GiB, a GPU has {device_gib:g}: more ranks, gradient_checkpointing, "
            "offload_optimizer or fewer micro_batch_tokens"
        )
    if rollout.gpus_per_worker and fits < 1:
        warnings.append(
            f"rollout: weights ({weights / GIB:.0f} GiB a GPU) leave no room for one sequence in {budget / GIB:.0f} GiB: raise "
            "tensor_parallel_size or lower max_context_tokens"
        )
    return lines, warnings


def _size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"


def read_config(model: str) -> dict[str, Any] | None:
    """The model's config.json: of a folder, or of the hub (from its cache, or that one file); None where the hub does not give it."""
    if looks_local(model):
        return json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    import httpx
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return json.loads(Path(cached).read_text(encoding="utf-8"))
    try:
        # Not hf_hub_download: without a network that retries for 25 s.
        answer = httpx.get(
            hf_hub_url(model, "config.json"),
            headers=build_hf_headers(),
            timeout=5,
            follow_redirects=True,
        )
        return answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
