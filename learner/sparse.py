"""Send only what an update has changed, from the partitions, without a whole tensor anywhere.

In bfloat16 a small learning rate leaves most weights as they were. Each rank compares its own
ZeRO-3 partition with a copy of what the engines have. Rank 0 collects the places and values that
differ, and vLLM's backend `sparse_nccl` broadcasts them; engines write them into their weights.

New engines get every element once: 6 bytes for each instead of 2. The copy costs each rank as much
memory as its partition of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner import lora
from learner.receivers import Receivers
from learner.weights import Parameters, full_shape, plan_buckets

Changes = tuple[Tensor, Tensor]
"""Places in a flattened tensor (int32), and the values there."""


class SparseNCCL:
    """Keep what the engines have, and send what differs from it."""

    def __init__(
        self, model: nn.Module, receivers: Receivers, info: Any, bucket_bytes: int
    ) -> None:
        """Connect vLLM's trainer-side engine. Collective.

        Args:
            model: the partitioned policy, without adapters.
            receivers: the engines.
            info: vLLM's `SparseNCCLTrainerInitInfo`.
            bucket_bytes: bytes of the weights that are compared at a time.
        """
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self._model = model
        self._receivers = receivers if info.rank == 0 else None
        self._bucket_bytes = bucket_bytes
        self._sent: dict[str, Tensor] = {}  # this rank's partitions as the engines have them
        client: Any = receivers
        self._engine: Any = WeightTransferTrainerFactory.trainer_init(info, client=client)

    def send_weights(self) -> None:
        """See `learner.senders.Sender`."""
        for bucket in plan_buckets(lora.exported(self._model), self._bucket_bytes):
            changes = [self._changes(name, parameter) for name, parameter in bucket]
            whole = collected(changes)
            self._engine.send_weight_chunk(_patches(bucket, whole))
        if self._receivers is not None:
            self._receivers.finish_weight_update()

    def shutdown(self) -> None:
        """See `learner.senders.Sender`."""
        self._engine.shutdown()

    def _changes(self, name: str, parameter: Any) -> Changes:
        """Return what differs in this rank's partition, and remember it as sent."""
        start, part = partition(parameter)
        before = self._sent.get(name)
        if before is None:
            self._sent[name] = part.clone()
            places = torch.arange(len(part), device=part.device)
        else:
            # By their bits: -0 is not 0 here.
            places = (_bits(part) != _bits(before)).nonzero().flatten()
            before.copy_(part)
        return (places + start).to(torch.int32), part[places]


def partition(parameter: Any) -> tuple[int, Tensor]:
    """Return where this rank's partition begins in a flattened parameter, and its elements."""
    size = parameter.ds_tensor.ds_numel
    start = size * dist.get_rank(parameter.ds_process_group)
    # The last partitions are padded.
    length = min(max(parameter.ds_numel - start, 0), size)
    return start, parameter.ds_tensor.detach()[:length]


def collected(changes: list[Changes]) -> list[Changes]:
    """Return the changes of all ranks, for each parameter in the order of its elements. Collective.

    Args:
        changes: this rank's, one for each parameter.
    """
    counts = torch.tensor([len(places) for places, _ in changes])
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, counts)
    longest = max(int(rank.sum()) for rank in everyone)
    places = _gathered(torch.cat([places for places, _ in changes]), longest)
    values = _gathered(torch.cat([values for _, values in changes]), longest)
    by_rank = []
    for of_rank, rank_places, rank_values in zip(everyone, places, values, strict=True):
        sizes = [*of_rank.tolist(), longest - int(of_rank.sum())]
        by_rank.append((rank_places.split(sizes), rank_values.split(sizes)))
    whole = []
    for i in range(len(changes)):
        all_places = torch.cat([rank_places[i] for rank_places, _ in by_rank])
        all_values = torch.cat([rank_values[i] for _, rank_values in by_rank])
        whole.append((all_places, all_values))
    return whole


def _gathered(mine: Tensor, longest: int) -> list[Tensor]:
    """Return one tensor of each rank, all padded to the longest."""
    padded = mine.new_zeros(longest)
    padded[: len(mine)] = mine
    everyone = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, padded)
    return everyone


def _patches(bucket: Parameters, whole: list[Changes]) -> list[Any]:
    from vllm.distributed.weight_transfer.sparse_nccl_engine import SparseWeightPatch

    return [
        SparseWeightPatch(name, places, values, full_shape(parameter))
        for (name, parameter), (places, values) in zip(bucket, whole, strict=True)
        if len(places)
    ]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
