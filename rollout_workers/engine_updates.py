"""What an engine does with a new policy: load whole weights, or adapters beside its own weights.

`VLLMEngine` holds requests back around an update and empties the caches after it. The classes here
do what lies between. `adapter` is what requests must name to be answered by the policy.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from axpo.scratch import Scratch, remove_left
from rollout_workers.settings import WorkerSettings

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


class Updates(Protocol):
    """One way of getting a new policy into an engine."""

    adapter: LoRARequest | None

    async def connect(self, info: dict[str, Any]) -> None:
        """Connect to the learner; `info` is the transfer backend's own."""

    async def start(self, *, again: bool) -> None:
        """Begin an update; `again`: the one before was left in the middle."""

    async def load(self, payload: dict[str, Any]) -> None:
        """Take one payload."""

    async def finish(self, version: int) -> int:
        """Make the policy runnable; return the version that the engine now has."""

    def close(self) -> None:
        """Remove what is on disk."""


def updates_of(llm: AsyncLLM, settings: WorkerSettings) -> Updates:
    """Return what the settings ask for, in place of what killed engines left on this machine."""
    remove_left()
    if settings.lora_rank is not None:
        return AdapterUpdates(llm)
    return WeightUpdates(llm, settings.config.engine.weight_transfer)


class WeightUpdates:
    """Whole weights, through vLLM's weight-transfer API."""

    adapter: LoRARequest | None = None

    def __init__(self, llm: AsyncLLM, backend: str) -> None:
        self._llm = llm
        self._has_handles = backend == "ipc"

    async def connect(self, info: dict[str, Any]) -> None:
        """See `Updates`."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        # After an engine was replaced the learner connects to the others anew.
        await self._llm.collective_rpc("disconnect_learner")
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(info))

    async def start(self, *, again: bool) -> None:
        """See `Updates`."""
        if again:
            await self._llm.collective_rpc("abandon_weight_update")
        await self._llm.start_weight_update()

    async def load(self, payload: dict[str, Any]) -> None:
        """See `Updates`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        from rollout_workers import ipc_handles

        if self._has_handles:
            data = ipc_handles.pack(payload)
            await self._llm.collective_rpc("update_weights_by_handles", args=(data,))
        else:
            await self._llm.update_weights(WeightTransferUpdateRequest(payload))

    async def finish(self, version: int) -> int:
        """See `Updates`."""
        await self._llm.finish_weight_update(str(version))
        return int(await self._llm.get_weight_version())

    def close(self) -> None:
        """Do nothing: nothing is on disk."""


class AdapterUpdates:
    """A LoRA adapter for each policy version, over the weights that the engine loaded at start."""

    adapter: LoRARequest | None = None

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._payload: dict[str, Any] | None = None
        # vLLM keeps what it loaded under an id, so each version needs one of its own.
        self._ids = itertools.count(1)
        self._folder: Scratch | None = None

    async def connect(self, info: dict[str, Any]) -> None:
        """Do nothing: adapters come with the call."""

    async def start(self, *, again: bool) -> None:
        """See `Updates`."""
        self._payload = None

    async def load(self, payload: dict[str, Any]) -> None:
        """Take the adapters: `config`, the fields of peft's file, and `tensors`, safetensors."""
        self._payload = payload

    async def finish(self, version: int) -> int:
        """See `Updates`."""
        from vllm.lora.request import LoRARequest

        if self._payload is None:
            raise RuntimeError(f"weight update {version} brought no adapters")
        folder = Scratch()
        write_adapter(self._payload, folder.path)
        number = next(self._ids)
        adapter = LoRARequest(f"policy-{version}-{number}", number, str(folder.path))
        await self._llm.add_lora(adapter)
        # Loaded now, not with the first request. There is room for one, so the last one is gone.
        if set(await self._llm.list_loras()) != {number}:
            raise RuntimeError(f"the engine did not take the adapters of weight update {version}")
        self.adapter, self._payload = adapter, None
        if self._folder is not None:
            self._folder.close()
        self._folder = folder
        return version

    def close(self) -> None:
        """Remove the last adapters."""
        if self._folder is not None:
            self._folder.close()


def write_adapter(payload: dict[str, Any], folder: Path) -> None:
    """Write adapters as the two files that peft and vLLM read."""
    (folder / "adapter_config.json").write_text(json.dumps(payload["config"]), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(payload["tensors"])


@contextmanager
def as_file(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a bucket whose bytes are in a file of this machine."""
    if "file" in payload:
        yield payload
        return
    with Scratch() as folder:
        file = folder / "bucket"
        file.write_bytes(payload["bytes"])
        yield {"file": str(file), "tensors": payload["tensors"]}
