"""Bringing the engines to the policy of the learner, and checking that they have it."""

from __future__ import annotations

from typing import Any

from torch import nn

from learner.config import LearnerConfig, Serving
from learner.senders import Rendezvous, vllm_sender
from learner.weights import Receivers, stream_shared_memory


class WeightSync:
    """Send one rank's part of the weights. Every method is collective."""

    def __init__(
        self, model: nn.Module, config: LearnerConfig, serving: Serving, rank: int
    ) -> None:
        """Send the weights of `model`, which ZeRO-3 has partitioned."""
        self._model = model
        self._serving = serving
        self._rank = rank
        self._deadline_s = config.deadline_s
        self._bucket_bytes = config.bucket_mb << 20
        self._receivers: Receivers | None = None
        self._sender: Any = None  # vLLM's; None: through shared memory

    def send(self, handles: list[Any], version: int, address: tuple[str, int]) -> None:
        """Bring all receivers to this policy.

        Args:
            handles: Ray handles of rollout workers.
            version: what the policy is called from now on.
            address: host and free port of rank 0.

        Raises:
            Exception: what a receiver raised, or ray.exceptions.GetTimeoutError.
        """
        receivers = self._connected(handles, address)
        receivers.version = version
        if self._sender is not None:
            self._sender.send_weights()
            return
        if self._rank == 0:
            receivers.start_weight_update()
        self._stream("update_weights")
        if self._rank == 0:
            receivers.finish_weight_update()

    def check(self) -> list[str]:
        """Return the parameters that some receiver does not hold as this policy does.

        The list is rank 0's; it is empty on the others.
        """
        different: set[str] = set()
        for answers in self._stream("differing_weights"):
            for names in answers:
                different.update(names)
        return sorted(different)

    def _connected(self, handles: list[Any], address: tuple[str, int]) -> Receivers:
        """Return the receivers, connected anew if they are other ones than last time."""
        if self._receivers is not None and self._receivers.handles == handles:
            return self._receivers
        # The first update, or the pool has replaced an engine.
        receivers = Receivers(handles, self._serving.ranks_per_engine, self._deadline_s)
        self._receivers = receivers
        backend = self._serving.weight_transfer
        if backend != "shared_memory":
            rendezvous = Rendezvous(backend, self._rank, address)
            self._sender = vllm_sender(self._model, receivers, rendezvous, self._bucket_bytes)
        elif self._rank == 0:
            receivers.init_weight_transfer_engine({})
        return receivers

    def _stream(self, method: str) -> list[list[Any]]:
        receivers = self._receivers if self._rank == 0 else None
        return stream_shared_memory(self._model, receivers, method, self._bucket_bytes)
