"""Estimate the memory of the ranks and engines of a recipe.

Counted, on the device of one rank of the learner:

    always         weights, gradients, optimizer states, the bucket in which gradients are summed
                   over the ranks; with `offload_*` what stays on the device
    a micro-batch  the layers that ZeRO-3 gathers, activations of language model and vision tower
                   (with or without checkpointing), the head's logits and its gradient
    the optimizer  a copy of the gradients, and AdamW's intermediate results
    sending        the bucket of whole weights, and vLLM's packing buffers
    saving         the bucket of whole weights

The estimate is what is always there and the largest of the others, as they come one after the
other. A micro-batch is taken to be full, and three in four of its tokens to be an image's
(`activations.IMAGE_SHARE`).

Counted in host memory: what `offload_optimizer` and `offload_parameters` put there, how much of it
is pinned, and what colocated ranks and engines put there while the others run. Of an engine: its
weights, and the keys and values of a sequence.

Not counted: CUDA's context (about 0.5 GiB) and NCCL's buffers, or on a CPU the program itself
(about 0.5 GiB with torch and DeepSpeed); fragmentation; gradients of a layer before they are
summed, and of the embedding; the rounding of pinned blocks to powers of two; decoded images, and
the copies of an asynchronous checkpoint; the engine's own activations, which vLLM takes from what
it leaves to the cache.

Measured on a CPU with a real-shaped folder (real vocabulary, two layers, float32): each of two
ranks with two images of 1024 x 1024 took 2.0 GiB, estimated 1.6 and the program; one rank with
checkpointing and two images of 1536 x 1536 took 2.5 GiB, estimated 1.8. No GPU was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from axpo.config import Recipe
from axpo.memory.activations import load_of, text_bytes, vision_bytes
from axpo.memory.shapes import Shape
from learner.config import HEAD_CHUNK, HEAD_CHUNK_CUDA, LearnerConfig, adapters_alone

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}

# The numbers of other modules, which would import torch. A test compares them.
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: what is gathered at a time, at most."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: parameters that the optimizer steps at a time."""
REDUCE_BUCKET = {True: 50_000_000, False: 4_000_000}
"""learner.zero: gradients summed over the ranks at a time, on a GPU or a CPU."""
PACKED_BUFFERS = 2
"""vLLM's packing buffers of a transfer by NCCL, of learner.bucket_mb each (learner.senders)."""


@dataclass(frozen=True)
class RankMemory:
    """The bytes of one rank, by what takes them."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]]  # one after the other
    host: float  # offloaded
    pinned: float  # of these

    @property
    def largest_phase(self) -> str:
        """Return the name of the phase that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def device(self) -> float:
        """Return the bytes on the device at the peak."""
        return sum(self.always.values()) + sum(self.phases[self.largest_phase].values())

    @property
    def lent(self) -> float:
        """Return the bytes that a colocated rank moves to host memory while engines run."""
        return self.always["weights"] + self.always["optimizer"]


def rank_memory(
    shape: Shape,
    config: LearnerConfig,
    *,
    own_reference: bool = False,
    longest_row: int = 0,
    transfer: str = "shared_memory",
) -> RankMemory:
    """Return what one rank takes.

    Args:
        shape: the model.
        config: the learner.
        own_reference: the KL term needs a model of its own.
        longest_row: tokens of the longest trajectory; one that is longer than a micro-batch stands
            alone.
        transfer: how weights reach the engines.
    """
    trained, everything = _parameters(shape, config)
    models = everything * (2 if own_reference else 1)
    # What stands in host memory is not on the device.
    weights = models * BYTES[config.dtype] / config.ranks
    states = trained / config.ranks
    on_gpu = config.gpus_per_rank > 0
    # Gradients are float32 (4 bytes a parameter), and AdamW keeps float32 weights and two moments
    # (12 bytes). Only what is trained has them.
    always = {
        "weights": 0 if config.offload_parameters else weights,
        "gradients": 0 if config.offload_optimizer else 4 * states,
        "optimizer": 0 if config.offload_optimizer else 12 * states,
        "gradient bucket": 4 * min(REDUCE_BUCKET[on_gpu], trained),
        # Its partition as the engines have it (learner.sparse).
        "weights sent": weights if transfer == "sparse_nccl" else 0,
    }
    phases: dict[str, dict[str, float]] = {
        "a micro-batch": _micro_batch(shape, config, max(config.micro_batch_tokens, longest_row)),
        # The gradients once more, and a square root of a moment.
        "the optimizer": {
            "its step": 0 if config.offload_optimizer else 8 * min(states, SUB_GROUP)
        },
        "sending": _sending(shape, config, transfer),
        "saving": {"bucket": _bucket(shape, config)},
    }
    offloaded = weights if config.offload_parameters else 0
    # With an offloaded optimizer its gradients are kept twice in float32, and pinned; weights and
    # moments are not pinned.
    pinned = offloaded + (8 * states if config.offload_optimizer else 0)
    host = pinned + (12 * states if config.offload_optimizer else 0)
    return RankMemory(always, phases, host, pinned)


def _parameters(shape: Shape, config: LearnerConfig) -> tuple[int, int]:
    """Return how many parameters are trained, and how many there are."""
    if config.lora is None:
        return shape.parameters, shape.parameters
    targets = config.lora.targets
    sizes = [sum(size) for name, size in shape.text.linear.items() if name in targets]
    adapters = shape.text.layers * config.lora.rank * sum(sizes)
    return adapters, shape.parameters + adapters


def _micro_batch(shape: Shape, config: LearnerConfig, tokens: int) -> dict[str, float]:
    width = BYTES[config.dtype]
    on_gpu, adapters = config.gpus_per_rank > 0, config.lora is not None
    load = load_of(
        shape,
        tokens,
        width,
        checkpointing=config.gradient_checkpointing,
        vision_trains=not adapters,
    )
    gathers = config.ranks > 1 or config.offload_parameters
    _, everything = _parameters(shape, config)
    logits = min(HEAD_CHUNK_CUDA if on_gpu else HEAD_CHUNK, tokens * shape.text.vocabulary)
    # The head's gradient is summed in float32, then turned into the type of the weights.
    head = 4 if width == 4 else 4 + width
    return {
        "gathered layers": min(everything, LIVE_PARAMETERS) * width if gathers else 0,
        "activations": text_bytes(shape.text, load),
        "vision tower": vision_bytes(shape.vision, load),
        "logits": 4 * logits * 4,
        "head's gradient": 0 if adapters else head * shape.text.embedding,
    }


def _sending(shape: Shape, config: LearnerConfig, transfer: str) -> dict[str, float]:
    if adapters_alone(config):
        return {"bucket": 0, "packing": 0}
    width = BYTES[config.dtype]
    largest, whole = shape.text.embedding * width, shape.parameters * width
    bucket = _bucket(shape, config)
    packed = 0.0
    if transfer == "nccl":
        # The buffers in flight, and the tensors that the next one is packed from. A buffer ends
        # with the tensor that fills it.
        packed = (PACKED_BUFFERS + 1) * min(whole, (config.bucket_mb << 20) + largest)
    if transfer == "ipc":
        packed = bucket
    if transfer == "sparse_nccl":
        # At first all elements of a bucket, each with its place (4 bytes): the ranks' and rank 0's.
        packed = 2 * bucket * (width + 4) / width
    return {"bucket": bucket, "packing": packed}


def _bucket(shape: Shape, config: LearnerConfig) -> float:
    """Return the bytes of the weights that are whole at a time."""
    width = BYTES[config.dtype]
    # A tensor that is larger than the bucket stands alone.
    largest = max(config.bucket_mb << 20, shape.text.embedding * width)
    return min(shape.parameters * width, largest)


def engine_bytes(shape: Shape, recipe: Recipe) -> tuple[float, float]:
    """Return the bytes on each GPU of one engine.

    Returns:
        Its weights, and the keys and values of one sequence of full length.
    """
    engine = recipe.rollout.engine
    b, split = BYTES[engine.dtype], engine.tensor_parallel_size
    # One key and one value in every layer for each token.
    sequence = 2 * shape.text.layers * shape.text.kv * b * recipe.rollout.max_context_tokens
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
    rank = rank_memory(
        shape,
        learner,
        own_reference=_has_own_reference(recipe),
        longest_row=rollout.max_context_tokens,
        transfer=rollout.engine.weight_transfer,
    )
    weights, sequence = engine_bytes(shape, recipe)
    memory = device_gib * GIB * rollout.engine.gpu_memory_utilization
    # Without a fixed size vLLM gives the cache all the memory that the weights leave.
    kv_cache_gb = rollout.engine.kv_cache_gb
    cache = memory - weights if kv_cache_gb is None else kv_cache_gb * GIB
    fits = max(0, math.floor(cache / sequence))
    lines = [
        f"model: {shape.parameters / 1e6:,.1f} million parameters",
        *_rank_lines(rank, learner.ranks),
        f"engine, each of {rollout.workers}: weights {_size(weights)}, KV cache {_size(sequence)} "
        f"for a sequence of {rollout.max_context_tokens} tokens; room for {fits} of them at once",
    ]
    if rollout.colocated and learner.gpus_per_rank:
        lines.append(
            f"learner, host memory of each rank while engines run: {_size(rank.lent)}, all pinned; "
            f"of all ranks {_size(learner.ranks * rank.lent)}"
        )
    if rollout.colocated and rollout.sleep_level == 1:
        asleep = weights * rollout.engine.tensor_parallel_size
        lines.append(
            f"engine, host memory while it sleeps: {_size(asleep)}; of all engines "
            f"{_size(rollout.workers * asleep)}"
        )
    warnings = []
    if learner.gpus_per_rank and rank.device > device_gib * GIB:
        warnings.append(
            f"learner: a rank needs about {rank.device / GIB:.0f} GiB, a GPU has {device_gib:g}: "
            "more ranks, gradient_checkpointing, offload_optimizer or fewer micro_batch_tokens"
        )
    if rollout.gpus_per_worker and fits < 1:
        warnings.append(
            f"rollout: weights ({weights / GIB:.0f} GiB a GPU) leave no room for one sequence in "
            f"{memory / GIB:.0f} GiB: raise tensor_parallel_size or lower max_context_tokens"
        )
    elif rollout.gpus_per_worker and weights + cache > device_gib * GIB:
        warnings.append(
            f"rollout: weights ({weights / GIB:.0f} GiB a GPU) and kv_cache_gb ({kv_cache_gb:g}) "
            f"are more than a GPU has ({device_gib:g}): lower it, or raise tensor_parallel_size"
        )
    return lines, warnings


def _rank_lines(rank: RankMemory, ranks: int) -> list[str]:
    largest = rank.largest_phase
    others = {name: sum(parts.values()) for name, parts in rank.phases.items() if name != largest}
    lines = [
        f"learner, each of {ranks} ranks: {_size(rank.device)} "
        f"({_list(rank.always)}; for {largest} {_list(rank.phases[largest])})",
        f"learner, at other times instead of {largest}: {_list(others)}",
    ]
    if rank.host:
        lines.append(
            f"learner, host memory of each rank: {_size(rank.host)}, "
            f"of these {_size(rank.pinned)} pinned; of all ranks {_size(ranks * rank.host)}"
        )
    return lines


def _has_own_reference(recipe: Recipe) -> bool:
    """Return whether the KL term needs a second model.

    Adapters need none: with them switched off, the policy is its own reference.
    """
    if recipe.learner.kl_beta == 0:
        return False
    return not recipe.learner.lora or recipe.reference not in (None, recipe.model)


def _list(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {_size(value)}" for name, value in parts.items() if value)


def _size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB else f"{amount / 2**20:.0f} MiB"
