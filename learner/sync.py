"""Bringing the engines to the policy of the learner, and checking that they have it."""

from __future__ import annotations

from typing import Any

from torch import nn

from axpo.scratch import remove_left
from learner.config import LearnerConfig, Serving, adapters_alone
from learner.receivers import SETTLE_S, Receivers
from learner.senders import Adapters, Rendezvous, Sender, SharedMemory, vllm_sender
from learner.weights import stream_bytes, stream_shared_memory


class WeightSync:
    """Send one rank's part of the weights. Every method is collective."""

    def __init__(
        self, model: nn.Module, config: LearnerConfig, serving: Serving, rank: int
    ) -> None:
        """Send the weights of `model`, which ZeRO-3 has partitioned.

        What a killed rank left on this machine is removed.
        """
        remove_left()
        self._model = model
        self._config = config
        self._serving = serving
        self._rank = rank
        self._bucket_bytes = config.bucket_mb << 20
        self._receivers: Receivers | None = None
        self._sender: Sender | None = None

    def send(self, handles: list[Any], version: int, address: tuple[str, int]) -> None:
        """Bring all receivers to this policy. They hold still already.

        Args:
            handles: Ray handles of rollout workers.
            version: what the policy is called from now on.
            address: host and free port of rank 0.

        Raises:
            Exception: what a receiver raised, or ray.exceptions.GetTimeoutError.
        """
        receivers, sender = self._connected(handles, address)
        receivers.version = version
        sender.send_weights()

    def check(self) -> list[str]:
        """Return the parameters that some receiver does not hold as this policy does.

        The list is rank 0's; it is empty on the others.
        """
        assert self._receivers is not None
        self._receivers.within(self._seconds)
        receivers = self._receivers if self._rank == 0 else None
        # Only the engines of `shared_memory` are sure to see this machine's files.
        shared = self._serving.weight_transfer == "shared_memory"
        stream = stream_shared_memory if shared else stream_bytes
        answers = stream(self._model, receivers, "differing_weights", self._bucket_bytes)
        different: set[str] = set()
        for bucket in answers:
            for names in bucket:
                different.update(names)
        return sorted(different)

    @property
    def _seconds(self) -> float:
        """Seconds for the engines' calls: a failed one is told before the driver gives up."""
        return max(self._config.sync_s - 2 * SETTLE_S, self._config.sync_s / 2)

    def _connected(self, handles: list[Any], address: tuple[str, int]) -> tuple[Receivers, Sender]:
        """Return receivers and sender, made anew if these are other engines than last time."""
        if self._receivers is None or self._sender is None or self._receivers.handles != handles:
            # The first update, or the pool has replaced an engine.
            if self._sender is not None:
                self._sender.shutdown()
            self._receivers = self._sender = None
            receivers = Receivers(handles, self._serving.ranks_per_engine)
            receivers.within(self._seconds)
            self._sender = self._new_sender(receivers, address)
            self._receivers = receivers
        self._receivers.within(self._seconds)
        return self._receivers, self._sender

    def _new_sender(self, receivers: Receivers, address: tuple[str, int]) -> Sender:
        model, config, backend = self._model, self._config, self._serving.weight_transfer
        if config.lora is not None and adapters_alone(config):
            return Adapters(model, receivers, self._rank, config.lora)
        if backend == "shared_memory":
            return SharedMemory(model, receivers, self._rank, self._bucket_bytes)
        rendezvous = Rendezvous(backend, self._rank, address)
        return vllm_sender(model, receivers, rendezvous, self._bucket_bytes)
