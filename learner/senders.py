"""vLLM's own ways of sending weights, over ZeRO-3 parameters: NCCL between GPUs, IPC on one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from learner import lora
from learner.weights import Receivers, full_shape, gathered


@dataclass(frozen=True)
class Rendezvous:
    """How the sender of one rank connects."""

    backend: str
    """"nccl" between GPUs, "ipc" on one GPU."""
    rank: int
    """Of the learner, from 0."""
    address: tuple[str, int]
    """Host and free port of rank 0, for nccl."""


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
) -> Any:
    """Connect vLLM's trainer-side engine. Collective.

    Args:
        model: the partitioned policy.
        receivers: the engines.
        rendezvous: how this rank connects.
        bucket_bytes: bytes of weights that are whole at a time.

    Returns:
        The engine; its `send_weights()` drives a whole update.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    info: Any
    # The nccl group: rank 0 of the learner, and all processes of all engines.
    if rendezvous.backend == "nccl":
        info = NCCLTrainerInitInfo(
            rank=rendezvous.rank,
            master_address=rendezvous.address[0],
            master_port=rendezvous.address[1],
            world_size=1 + receivers.ranks,
        )
    else:
        info = IPCTrainerInitInfo(
            rank=rendezvous.rank, packed=True, packed_buffer_size_bytes=bucket_bytes
        )
    source: Any = ParameterSource(model, bucket_bytes)
    return WeightTransferTrainerFactory.trainer_init(info, client=receivers, source=source)
