"""The way of the policy's weights to the engines: gathered bucket by bucket, then handed over.

Through shared memory (one machine) a payload is a file of one bucket:

    {"file": "/dev/shm/axpo-scratch-.../<bucket>",
     "tensors": [{"name": ..., "dtype": "float32", "shape": [...], "offset": bytes}, ...]}

To engines on other machines, which only compare it, the payload has `bytes` instead of `file`.
NCCL and CUDA IPC are vLLM's own trainer-side engines over the same receivers (`learner.senders`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor, nn

from axpo.scratch import SHARED_MEMORY, Scratch
from learner import lora
from learner.receivers import Receivers

Named: TypeAlias = list[tuple[str, Tensor]]
"""Hugging Face names and whole tensors."""
Parameters: TypeAlias = list[tuple[str, nn.Parameter]]
"""Hugging Face names and parameters, which ZeRO-3 may have partitioned."""


def plan_buckets(
    parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int
) -> list[Parameters]:
    """Put consecutive parameters into buckets.

    Args:
        parameters: with their names.
        bucket_bytes: most bytes of a bucket when whole; a larger parameter stands alone.
    """
    buckets: list[Parameters] = []
    size = 0
    for name, parameter in parameters:
        own = math.prod(full_shape(parameter)) * parameter.element_size()
        if not buckets or size + own > bucket_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append((name, parameter))
        size += own
    return buckets


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return the shape that a parameter had before ZeRO-3 partitioned it."""
    # ZeRO-3 leaves an empty tensor behind, and puts the shape beside it.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gathered(model: nn.Module, bucket_bytes: int) -> Iterator[Named]:
    """Yield the whole weights, a bucket at a time; each is valid until the next one.

    Adapters are merged into the weights they sit on. A tied head appears once, as the embedding.
    Collective: every rank must exhaust it.
    """
    import deepspeed

    adapters = lora.adapters(model)
    for bucket in plan_buckets(lora.exported(model), bucket_bytes):
        # The factors of adapters are gathered with the weights that they change.
        needed = [parameter for _, parameter in bucket]
        for name, _ in bucket:
            if name in adapters:
                needed += [adapters[name].a, adapters[name].b]
        with deepspeed.zero.GatheredParameters(needed):
            yield [
                (name, lora.merged(parameter.data, adapters.get(name)))
                for name, parameter in bucket
            ]


def stream_shared_memory(
    model: nn.Module, receivers: Receivers | None, method: str, bucket_bytes: int
) -> list[list[Any]]:
    """Call `method(payload)` on all receivers for every bucket. Collective.

    Each call overlaps the next gather. If one fails, the other ranks' gathers are still served
    before the error leaves, so that no rank is left waiting.

    Args:
        model: the partitioned policy.
        receivers: None on all ranks but the one that sends.
        method: of a receiver.
        bucket_bytes: most bytes of a bucket.

    Returns:
        For each bucket what each receiver answered.
    """
    buckets = gathered(model, bucket_bytes)
    try:
        if receivers is None:
            return []
        with Scratch(SHARED_MEMORY) as folder:
            return _send_buckets(buckets, receivers, method, folder)
    finally:
        # Gather what is left: the ranks that do not send take part in every gather.
        for _ in buckets:
            pass


def _send_buckets(
    buckets: Iterable[Named], receivers: Receivers, method: str, folder: Path
) -> list[list[Any]]:
    answers: list[list[Any]] = []
    pending: list[Any] = []
    file: Path | None = None  # that the pending calls read
    for i, tensors in enumerate(buckets):
        payload = write_bucket(tensors, folder / str(i))
        # The engines have read the bucket before while this one was gathered and written.
        if file is not None:
            answers.append(receivers.wait(pending))
            file.unlink()
        pending = receivers.call(method, payload)
        file = Path(payload["file"])
    if file is not None:
        answers.append(receivers.wait(pending))
    return answers


def stream_bytes(
    model: nn.Module, receivers: Receivers | None, method: str, bucket_bytes: int
) -> list[list[Any]]:
    """Do as `stream_shared_memory` does, through Ray's object store: to engines on any machine."""
    import ray

    buckets = gathered(model, bucket_bytes)
    answers: list[list[Any]] = []
    try:
        for tensors in buckets:
            if receivers is None:
                continue
            out = io.BytesIO()
            payload = {"tensors": _write(tensors, out), "bytes": out.getvalue()}
            # One copy for each machine, not one for each engine.
            answers.append(receivers.wait(receivers.call(method, ray.put(payload))))
        return answers
    finally:
        for _ in buckets:
            pass


def write_bucket(tensors: Named, file: Path) -> dict[str, Any]:
    """Write whole tensors to a new file and return its payload."""
    with file.open("xb") as out:
        entries = _write(tensors, out)
    return {"file": str(file), "tensors": entries}


def _write(tensors: Named, out: BinaryIO) -> list[dict[str, Any]]:
    """Write whole tensors one behind the other; return what a payload says of them."""
    entries = []
    for name, tensor in tensors:
        entry = {
            "name": name,
            "dtype": str(tensor.dtype).split(".")[-1],
            "shape": list(tensor.shape),
            "offset": out.tell(),
        }
        entries.append(entry)
        out.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return entries
