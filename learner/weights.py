"""Sending the policy's weights: ZeRO-3 partitions are gathered bucket by bucket and handed to the engines.

Receivers are rollout workers (Ray actor handles) with `init_weight_transfer(info)`, `start_weight_update()`,
`update_weights(payload)`, `finish_weight_update(version) -> version` and `differing_weights(payload) -> list[str]`. Through shared
memory (one machine) a payload is a file of one bucket:

    {"file": "/dev/shm/axpo-.../<bucket>", "tensors": [{"name": ..., "dtype": "float32", "shape": [...], "offset": bytes}, ...]}

NCCL and CUDA IPC are vLLM's own trainer-side engines over the same receivers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learner import lora

Named = list[tuple[str, Tensor]]
SETTLE_S = 10.0
"""Seconds that receivers get to end a call after another one's has failed."""


def plan_buckets(
    parameters: Iterable[tuple[str, nn.Parameter]], bucket_bytes: int
) -> list[list[tuple[str, nn.Parameter]]]:
    """Consecutive parameters in buckets of at most `bucket_bytes` when whole (a larger parameter stands alone)."""
    buckets: list[list[tuple[str, nn.Parameter]]] = []
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
    """The shape before ZeRO-3 partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gathered(model: nn.Module, bucket_bytes: int) -> Iterator[Named]:
    """(Hugging Face name, whole tensor), a bucket at a time, valid until the next one; a tied head appears once, as the embedding.

    Adapters are merged into the weights they sit on. Collective: every rank must exhaust it.
    """
    import deepspeed

    adapters = lora.adapters(model)
    for bucket in plan_buckets(lora.exported(model), bucket_bytes):
        on_these = [adapters[name] for name, _ in bucket if name in adapters]
        needed = [parameter for _, parameter in bucket] + [
            p for adapter in on_these for p in (adapter.a, adapter.b)
        ]
        with deepspeed.zero.GatheredParameters(needed):
            yield [
                (name, lora.merged(parameter.data, adapters.get(name)))
                for name, parameter in bucket
            ]


class Receivers:
    """The engines as one: each call goes to all of them, and waits no longer than the deadline (ray.exceptions.GetTimeoutError).

    Its first four methods are vLLM's `VLLMWeightSyncClient` protocol.
    """

    def __init__(self, handles: Sequence[Any], ranks_each: int, deadline_s: float) -> None:
        self.handles = list(handles)
        self.version = 0
        self._ranks_each = ranks_each
        self._deadline_s = deadline_s

    @property
    def ranks(self) -> int:
        return len(self.handles) * self._ranks_each

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """vLLM numbers one engine's processes from `rank_offset`; each receiver is an engine of its own, so each gets its own offset."""
        calls = []
        for i, handle in enumerate(self.handles):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += i * self._ranks_each
            calls.append(handle.init_weight_transfer.remote(info))
        self.wait(calls)

    def start_weight_update(self) -> None:
        self.wait(self.call("start_weight_update"))

    def update_weights(self, update_info: Any) -> None:
        self.wait(self.call("update_weights", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """RuntimeError where an engine does not confirm the version."""
        confirmed = self.wait(self.call("finish_weight_update", self.version))
        if wrong := [version for version in confirmed if version != self.version]:
            raise RuntimeError(
                f"after weight update {self.version} {len(wrong)} engines confirm version {wrong[0]}"
            )

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Start `method` on all receivers; returns the references."""
        return [getattr(handle, method).remote(*arguments) for handle in self.handles]

    def wait(self, references: list[Any]) -> list[Any]:
        import ray

        try:
            return ray.get(references, timeout=self._deadline_s)
        except BaseException:
            # The others may still read the bucket: an engine must not fail because another one did.
            ray.wait(references, num_returns=len(references), timeout=SETTLE_S)
            raise


def stream_shared_memory(
    model: nn.Module, receivers: Receivers | None, method: str, bucket_bytes: int
) -> list[list[Any]]:
    """Call `method(payload)` on all receivers for every bucket, each call overlapping the next gather.

    Collective; `receivers` is None on all ranks but the one that sends. Returns per bucket what each receiver answered.
    On failure the other ranks' gathers are still served before the error leaves, so that no rank is left waiting.
    """
    buckets = gathered(model, bucket_bytes)
    answers: list[list[Any]] = []
    try:
        if receivers is not None:
            with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="axpo-") as folder:
                pending: tuple[list[Any], Path] | None = None
                for i, tensors in enumerate(buckets):
                    payload = write_bucket(tensors, Path(folder, str(i)))
                    if pending is not None:
                        answers.append(receivers.wait(pending[0]))
                        pending[1].unlink()
                    pending = receivers.call(method, payload), Path(payload["file"])
                if pending is not None:
                    answers.append(receivers.wait(pending[0]))
    finally:
        for _ in buckets:
            pass
    return answers


def write_bucket(tensors: Named, file: Path) -> dict[str, Any]:
    """Write whole tensors to a new file; returns its payload."""
    entries = []
    with file.open("xb") as out:
        for name, tensor in tensors:
            entries.append(
                {
                    "name": name,
                    "dtype": str(tensor.dtype).split(".")[-1],
                    "shape": list(tensor.shape),
                    "offset": out.tell(),
                }
            )
            out.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"file": str(file), "tensors": entries}


class ParameterSource:
    """vLLM's `WeightSource` over ZeRO-3 parameters: whole tensors one by one, the same order on every rank."""

    def __init__(self, model: nn.Module, bucket_bytes: int) -> None:
        self._model = model
        self._bucket_bytes = bucket_bytes

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, parameter.dtype, full_shape(parameter))
            for name, parameter in lora.exported(self._model)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for tensors in gathered(self._model, self._bucket_bytes):
            yield from tensors


def vllm_sender(
    backend: str,
    model: nn.Module,
    receivers: Receivers,
    rank: int,
    address: tuple[str, int],
    bucket_bytes: int,
) -> Any:
    """vLLM's trainer-side engine ("nccl" between GPUs, "ipc" on one GPU), connected; `send_weights()` drives a whole update.

    Collective. `address`: host and free port of rank 0 for the nccl rendezvous.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info: Any
    if backend == "nccl":
        info = NCCLTrainerInitInfo(
            rank=rank,
            master_address=address[0],
            master_port=address[1],
            world_size=1 + receivers.ranks,
        )
    else:
        info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=bucket_bytes)
    source: Any = ParameterSource(model, bucket_bytes)
    return WeightTransferTrainerFactory.trainer_init(info, client=receivers, source=source)
