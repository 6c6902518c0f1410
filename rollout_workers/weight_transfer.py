"""What runs inside vLLM's engine process: weights through shared memory, the check of live weights, and no orphans.

The learner writes a bucket of full Hugging Face tensors to a file under /dev/shm; every engine process of the node maps
it and loads from there. `register` is the target of the `vllm.general_plugins` entry point, so every vLLM process calls
it where the distribution is installed; elsewhere the import of `EngineProcess` as vLLM's worker extension does.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    _get_original_loader,
    get_layerwise_info,
)
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs

BACKEND = "shared_memory"
OWNER = "AXPO_ENGINE_OWNER"
"""Environment variable: id of the process that started the engine; vLLM's processes end when it ends."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing to agree on: each payload names its file."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """One bucket: a file and, for each tensor in it, name, dtype, shape and offset in bytes."""

    file: str
    tensors: list[dict[str, Any]]


class SharedMemoryWeightTransfer(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """vLLM's weight-transfer backend `shared_memory`.

    `model.load_weights` on a running CPU engine fails, because linear layers gave their weights to packed kernels;
    the layerwise reload restores the loadable form, loads, and packs again.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _names: frozenset[str] = frozenset()

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        pass

    def start_weight_update(self) -> None:
        # Read from a whole model: while it reloads, a tied head is a parameter of its own.
        self._names = self._names or frozenset(name for name, _ in self.model.named_parameters())
        self._missing = set(self._names)
        for module in self.model.modules():
            info = get_layerwise_info(module)
            if (
                info.can_load()
            ):  # an update before this one was cut: its tensors must not mix with the new ones
                info.loaded_weights.clear()
                info.load_numel = 0
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        self._missing -= self.model.load_weights(read_tensors(update_info)) or set()

    def finish_weight_update(self) -> None:
        """RuntimeError where the update left a parameter out: the engine would mix two policies."""
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied(self.model)
        if self._missing:
            raise RuntimeError(
                f"the weight update had no tensor for {len(self._missing)} parameters, first {min(self._missing)}"
            )

    def shutdown(self) -> None:
        pass


def _repack_tied(model: torch.nn.Module) -> None:
    """Pack a tied head again. The layerwise reload packs the layer that was loaded, the embedding; on CPU the head would
    keep computing with its old packed copy (measured on a tied model: logprobs 0.27 off the new policy's)."""
    owners: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if (
                parameter is not None
                and owners.setdefault(id(parameter), module) is not module
                and hasattr(module, "cpu_linear")
            ):
                module.quant_method.process_weights_after_loading(module)


class EngineProcess:
    """Mixed into vLLM's worker (`worker_extension_cls`), called through `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    weight_transfer_engine: Any

    def abandon_weight_update(self) -> None:
        """End a session that its sender left in the middle; vLLM would refuse the next one."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """The live parameters that do not equal the payload's tensors, element for element."""
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            return _differing(self.model_runner.get_model(), SharedMemoryUpdate(**payload))


def read_tensors(update: SharedMemoryUpdate) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) views of the mapped file; they stay valid after the sender removed it. ValueError where it is too short."""
    with open(update.file, "rb") as file:
        # copy-on-write: torch wants writable memory, and nothing may write into the sender's pages
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for entry in update.tensors:
        dtype, shape = getattr(torch, entry["dtype"]), tuple(entry["shape"])
        count = torch.Size(shape).numel()
        yield (
            entry["name"],
            torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry["offset"]).view(shape),
        )


def _differing(model: torch.nn.Module, update: SharedMemoryUpdate) -> list[str]:
    """Load the payload into a blank second set of parameters by the model's own loaders, which know how tensors are fused
    (q, k, v; gate, up) and sharded, and compare what they wrote with the live weights. Elements of other buckets stay NaN."""
    live = {module: dict(module._parameters) for module in model.modules()}
    blanks: dict[int, torch.Tensor] = {}  # by live parameter: tied ones stay tied
    try:
        for module in model.modules():
            recorded, _ = get_layerwise_info(module).restore_metadata
            for name, parameter in live[module].items():
                if parameter is None:
                    continue
                if id(parameter) not in blanks:
                    meta = (
                        restore_layer_refs(recorded[name], module)
                        if name in recorded
                        else to_meta_tensor(parameter)
                    )
                    blank = materialize_meta_tensor(meta)
                    if hasattr(
                        blank, "weight_loader"
                    ):  # an update before this left its own wrapper, which loads nothing now
                        blank.weight_loader = _get_original_loader(blank)
                    blanks[id(parameter)] = (
                        blank.fill_(torch.nan) if blank.is_floating_point() else blank
                    )
                module._parameters[name] = blanks[id(parameter)]
        loaded = model.load_weights(read_tensors(update))
        expected = {module: dict(module._parameters) for module in live}
    finally:
        for module, parameters in live.items():
            module._parameters.update(parameters)
    differing = []
    for prefix, module in model.named_modules():
        for name, wanted in expected[module].items():
            if wanted is None or not wanted.is_floating_point():
                continue
            written = ~wanted.isnan()
            if not written.any():
                if f"{prefix}.{name}" in loaded:
                    raise RuntimeError(f"{prefix}.{name}: the model's loader wrote nothing")
            elif not torch.equal(_live(module, name, wanted)[written], wanted[written]):
                differing.append(f"{prefix}.{name}")
    return differing


def _live(module: torch.nn.Module, name: str, like: torch.Tensor) -> torch.Tensor:
    """A parameter as the engine computes with it, on the CPU.

    vLLM's CPU linear layers keep their weight only inside a packed kernel; multiplying the identity reads it back
    exactly (each sum has one term that is not 0).
    """
    parameter = module._parameters[name]
    assert parameter is not None
    if name == "weight" and hasattr(module, "cpu_linear"):
        parameter = module.cpu_linear(
            torch.eye(like.shape[1], dtype=like.dtype), parameter, None
        ).t()
    return parameter.detach().to("cpu", like.dtype)


def register() -> None:
    """Make the backend known to vLLM in this process and tie the process to the engine's owner. Safe to call again."""
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightTransfer)
    # vLLM warns of every module without weights of its own at each update; `finish_weight_update` raises where one is missing
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    owner = os.environ.get(OWNER)
    if owner is not None and int(owner) != os.getpid():
        threading.Thread(
            target=_end_with, args=(int(owner),), daemon=True, name="end-with-owner"
        ).start()


def _end_with(owner: int) -> None:
    """A killed Ray actor runs no clean-up; without this its engine processes would keep their memory for ever."""
    with contextlib.suppress(ProcessLookupError):  # gone already
        select.select([os.pidfd_open(owner)], [], [])
    os._exit(1)


register()
