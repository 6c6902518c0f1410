"""The way of the policy's weights to the engines: gathered bucket by bucket, then handed over.

Receivers are rollout workers (Ray actor handles) with `init_weight_transfer(info)`,
`start_weight_update()`, `update_weights(payload)`, `finish_weight_update(version) -> version` and
`differing_weights(payload) -> list[str]`. Through shared memory (one machine) a payload is a file
of one bucket:

    {"file": "/dev/shm/axpo-.../<bucket>",
     "tensors": [{"name": ..., "dtype": "float32", "shape": [...], "offset": bytes}, ...]}

NCCL and CUDA IPC are vLLM's own trainer-side engines over the same receivers (`learner.senders`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from learner import lora

Named: TypeAlias = list[tuple[str, Tensor]]
"""Hugging Face names and whole tensors."""
Parameters: TypeAlias = list[tuple[str, nn.Parameter]]
"""Hugging Face names and parameters, which ZeRO-3 may have partitioned."""

SETTLE_S = 10.0
"""Seconds that receivers get to end a call after another one's has failed."""


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


class Receivers:
    """Treat the engines as one: each call goes to all of them.

    A call waits no longer than the deadline, then it raises ray.exceptions.GetTimeoutError. The
    first four methods are vLLM's `VLLMWeightSyncClient` protocol.
    """

    def __init__(self, handles: Sequence[Any], ranks_each: int, deadline_s: float) -> None:
        """Take rollout workers.

        Args:
            handles: Ray handles of the workers.
            ranks_each: processes of one engine.
            deadline_s: seconds that a call may take.
        """
        self.handles = list(handles)
        self.version = 0
        self._ranks_each = ranks_each
        self._deadline_s = deadline_s

    @property
    def ranks(self) -> int:
        """Processes of all engines."""
        return len(self.handles) * self._ranks_each

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the engines.

        vLLM numbers one engine's processes from `rank_offset`. Each receiver is an engine of its
        own, so each gets its own offset.
        """
        calls = []
        for i, handle in enumerate(self.handles):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += i * self._ranks_each
            calls.append(handle.init_weight_transfer.remote(info))
        self.wait(calls)

    def start_weight_update(self) -> None:
        """Tell the engines that weights are coming."""
        self.wait(self.call("start_weight_update"))

    def update_weights(self, update_info: Any) -> None:
        """Hand one payload to the engines."""
        self.wait(self.call("update_weights", update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Tell the engines that they have all weights.

        Raises:
            RuntimeError: an engine does not confirm the version.
        """
        confirmed = self.wait(self.call("finish_weight_update", self.version))
        wrong = [version for version in confirmed if version != self.version]
        if wrong:
            raise RuntimeError(
                f"after weight update {self.version} {len(wrong)} engines "
                f"confirm version {wrong[0]}"
            )

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Start a method on all receivers and return the references to its results."""
        return [getattr(handle, method).remote(*arguments) for handle in self.handles]

    def wait(self, references: list[Any]) -> list[Any]:
        """Return the results; raise what the first failed call raised."""
        import ray

        try:
            return ray.get(references, timeout=self._deadline_s)
        except BaseException:
            # The others may still read the bucket: an engine must not fail because another did.
            ray.wait(references, num_returns=len(references), timeout=SETTLE_S)
            raise


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
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="axpo-") as folder:
            return _send_buckets(buckets, receivers, method, Path(folder))
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


def write_bucket(tensors: Named, file: Path) -> dict[str, Any]:
    """Write whole tensors to a new file and return its payload."""
    entries = []
    with file.open("xb") as out:
        for name, tensor in tensors:
            entry = {
                "name": name,
                "dtype": str(tensor.dtype).split(".")[-1],
                "shape": list(tensor.shape),
                "offset": out.tell(),
            }
            entries.append(entry)
            out.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"file": str(file), "tensors": entries}
