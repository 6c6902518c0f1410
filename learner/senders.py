"""What brings the learner's weights to the engines: one sender for each way.

A sender is made once for a set of engines, on every rank, and again if an engine was replaced. Its
`send_weights` is collective and drives a whole update, after the engines hold still.

    SharedMemory    files under /dev/shm; engines on the learner's machine
    Adapters        LoRA factors alone, through Ray; the engines add them to their base weights
    vllm_sender     vLLM's own: NCCL between GPUs, CUDA IPC on one
    SparseNCCL      what has changed alone, between GPUs (`learner.sparse`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from learner import lora
from learner.config import LoraSettings
from learner.receivers import Receivers
from learner.sparse import SparseNCCL
from learner.weights import full_shape, gathered, stream_shared_memory


class Sender(Protocol):
    """Brings the weights to the engines that it was made for."""

    def send_weights(self) -> None:
        """Send all, and let the engines confirm the version. Collective."""

    def shutdown(self) -> None:
        """Give connections back."""


@dataclass(frozen=True)
class Rendezvous:
    """How the sender of one rank connects."""

    backend: str
    """"nccl" or "sparse_nccl" between GPUs, "ipc" on one GPU."""
    rank: int
    """Of the learner, from 0."""
    address: tuple[str, int]
    """Host and free port of rank 0, for nccl."""


class SharedMemory:
    """Write buckets to files that the engines map."""

    def __init__(
        self, model: nn.Module, receivers: Receivers, rank: int, bucket_bytes: int
    ) -> None:
        self._model = model
        self._receivers = receivers if rank == 0 else None
        self._bucket_bytes = bucket_bytes
        if self._receivers is not None:
            self._receivers.init_weight_transfer_engine({})

    def send_weights(self) -> None:
        """See `Sender`."""
        stream_shared_memory(self._model, self._receivers, "update_weights", self._bucket_bytes)
        if self._receivers is not None:
            self._receivers.finish_weight_update()

    def shutdown(self) -> None:
        """Do nothing: no connection is open."""


class Adapters:
    """Send the factors of the adapters, and nothing of the frozen base."""

    def __init__(
        self, model: nn.Module, receivers: Receivers, rank: int, settings: LoraSettings
    ) -> None:
        self._model = model
        self._receivers = receivers if rank == 0 else None
        self._settings = settings

    def send_weights(self) -> None:
        """See `Sender`."""
        import ray

        payload = lora.payload(self._model, self._settings)
        if self._receivers is not None:
            # Once into the object store, not once for each engine.
            self._receivers.update_weights(ray.put(payload))
            self._receivers.finish_weight_update()

    def shutdown(self) -> None:
        """Do nothing: no connection is open."""


class ParameterSource:
    """vLLM's `WeightSource`: whole tensors one by one, the same order on every rank."""

    def __init__(self, model: nn.Module, bucket_bytes: int) -> None:
        """Read the weights of `model`, at most `bucket_bytes` of them whole at a time."""
        self._model = model
        self._bucket_bytes = bucket_bytes

    def metadata(self) -> list[Any]:
        """Return name, dtype and shape of every weight."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, parameter.dtype, full_shape(parameter))
            for name, parameter in lora.exported(self._model)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for tensors in gathered(self._model, self._bucket_bytes):
            yield from tensors


def vllm_sender(
    model: nn.Module, receivers: Receivers, rendezvous: Rendezvous, bucket_bytes: int
) -> Sender:
    """Connect vLLM's trainer-side engine. Collective.

    Args:
        model: the partitioned policy.
        receivers: the engines.
        rendezvous: how this rank connects.
        bucket_bytes: bytes of weights that are whole at a time, and of vLLM's buffer. A larger
            tensor gets a buffer of its size.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseNCCLTrainerInitInfo

    # The nccl group: rank 0 of the learner, and all processes of all engines.
    info: Any
    group: dict[str, Any] = {
        "rank": rendezvous.rank,
        "master_address": rendezvous.address[0],
        "master_port": rendezvous.address[1],
        "world_size": 1 + receivers.ranks,
    }
    if rendezvous.backend == "sparse_nccl":
        info = SparseNCCLTrainerInitInfo(**group)
        return SparseNCCL(model, receivers, info, bucket_bytes)
    # IPC refuses a tensor that is larger than its buffer. The embedding of Qwen3-VL-8B has 1.2 GB.
    buffer_bytes = max(bucket_bytes, largest_tensor(model))
    if rendezvous.backend == "nccl":
        info = NCCLTrainerInitInfo(**group, packed=True, packed_buffer_size_bytes=bucket_bytes)
    else:
        info = IPCTrainerInitInfo(
            rank=rendezvous.rank, packed=True, packed_buffer_size_bytes=buffer_bytes
        )
    source: Any = ParameterSource(model, bucket_bytes)
    return WeightTransferTrainerFactory.trainer_init(info, client=receivers, source=source)


def largest_tensor(model: nn.Module) -> int:
    """Return the bytes of the largest weight that is sent."""
    return max(
        math.prod(full_shape(parameter)) * parameter.element_size()
        for _, parameter in lora.exported(model)
    )
