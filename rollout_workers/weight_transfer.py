"""What runs inside vLLM's engine process: weights through shared memory, and no orphans.

How new weights get from the learner to the engines, from the outermost call to the innermost:

    Policy.publish          axpo/training/policy.py    brings every engine to the learner's weights;
                                                       again if an engine is lost on the way
    Learner.send_weights    learner/learner.py         asks all ranks, and checks (`check_sync`)
    rank.send_weights       learner/rank.py            gathers ZeRO-3 partitions, bucket by bucket
    a Sender                learner/senders.py         one of the ways to send
    Receivers               learner/receivers.py       calls all workers at once
    RolloutWorker           rollout_workers/worker.py  notes a failure for `ping`
    VLLMEngine              rollout_workers/engine.py  closes the gate, opens it with empty caches
    Updates                 rollout_workers/engine_updates.py  weights, or adapters beside them
    vLLM's transfer engine  here                       loads tensors into the model

From the receivers inwards one update is a session of three calls, under vLLM's names:
`start_weight_update()`, `update_weights(payload)` for each bucket, `finish_weight_update(version)`.
`init_weight_transfer(info)` connects a worker once, before them. `differing_weights(payload)` goes
the same way and compares, where an update would load.

With the backend `shared_memory` the learner writes a bucket of full Hugging Face tensors to a file
under /dev/shm. Every engine process of the node maps it and loads from there. NCCL and CUDA IPC
are vLLM's own backends.

`register` is the target of the `vllm.general_plugins` entry point, so every vLLM process calls it
if the distribution is installed. Otherwise the import of `EngineProcess` as vLLM's worker
extension does.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

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

from rollout_workers import ipc_handles

Parameters: TypeAlias = Mapping[str, torch.nn.Parameter | None]
"""A module's own parameters, by name."""
BACKEND = "shared_memory"
OWNER = "AXPO_ENGINE_OWNER"
"""Environment variable: the id of the process that started the engine.

vLLM's processes end when it ends.
"""


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

    `model.load_weights` on a running CPU engine fails, because linear layers gave their weights to
    packed kernels. The layerwise reload restores the loadable form, loads, and packs again.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    _names: frozenset[str] = frozenset()

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Do nothing: each payload names its file."""

    def start_weight_update(self) -> None:
        """Make the model loadable, and forget an update that was left in the middle."""
        # Read from a whole model: while it reloads, a tied head is a parameter of its own.
        self._names = self._names or frozenset(name for name, _ in self.model.named_parameters())
        self._missing = set(self._names)
        for module in self.model.modules():
            info = get_layerwise_info(module)
            # If an update before this one was cut, its tensors must not mix with the new ones.
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Load one bucket."""
        self._missing -= self.model.load_weights(read_tensors(update_info)) or set()

    def finish_weight_update(self) -> None:
        """Make the model runnable again.

        Raises RuntimeError if the update left a parameter out: the engine would mix two policies.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied(self.model)
        if self._missing:
            raise RuntimeError(
                f"the weight update had no tensor for {len(self._missing)} parameters,"
                f" first {min(self._missing)}"
            )

    def shutdown(self) -> None:
        """Do nothing: no connection is open."""


class EngineProcess:
    """Mixed into vLLM's worker (`worker_extension_cls`), and called through `collective_rpc`."""

    vllm_config: Any
    model_runner: Any
    update_weights: Any
    weight_transfer_engine: Any

    def abandon_weight_update(self) -> None:
        """End a session that its sender left in the middle; vLLM would refuse the next one."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def disconnect_learner(self) -> None:
        """Give back the connection to a learner, before there is another one."""
        self.weight_transfer_engine.shutdown()

    def update_weights_by_handles(self, data: bytes) -> None:
        """Load what CUDA IPC handles point to."""
        self.update_weights(ipc_handles.unpack(data))

    def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Return the live parameters that do not equal the payload's tensors exactly."""
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            return _differing(self.model_runner.get_model(), SharedMemoryUpdate(**payload))


def read_tensors(update: SharedMemoryUpdate) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and tensors of a bucket, as views of the mapped file.

    They stay valid after the sender has removed the file. Raises ValueError if it is too short.
    """
    with open(update.file, "rb") as file:
        # Copy-on-write: torch wants writable memory, and nothing may write into the sender's pages.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for entry in update.tensors:
        dtype = getattr(torch, entry["dtype"])
        shape = tuple(entry["shape"])
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=entry["offset"])
        yield entry["name"], tensor.view(shape)


def register() -> None:
    """Make the backend known to vLLM, and tie this process to the engine's owner.

    It is safe to call this again.
    """
    # vLLM's factory refuses to register a name twice.
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryWeightTransfer)
    # vLLM warns of every module without weights of its own at each update. What really matters is
    # checked: `finish_weight_update` raises if a parameter is missing.
    reload_logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    reload_logger.setLevel(logging.ERROR)
    owner = os.environ.get(OWNER)
    if owner is not None and int(owner) != os.getpid():
        threading.Thread(
            target=_end_with, args=(int(owner),), daemon=True, name="end-with-owner"
        ).start()


def _end_with(owner: int) -> None:
    """End this process when its owner ends.

    A killed Ray actor runs no clean-up. Without this its engine processes would keep their memory
    for ever.
    """
    with contextlib.suppress(ProcessLookupError):  # gone already
        select.select([os.pidfd_open(owner)], [], [])
    os._exit(1)


def _repack_tied(model: torch.nn.Module) -> None:
    """Pack a tied head again.

    The layerwise reload packs the layer that was loaded, which is the embedding. On CPU the head
    would keep computing with its old packed copy. Measured on a tied model: log-probabilities were
    0.27 off the new policy's.
    """
    owners: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            tied = owners.setdefault(id(parameter), module) is not module
            if tied and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


def _differing(model: torch.nn.Module, update: SharedMemoryUpdate) -> list[str]:
    """Return the names of the parameters that are not what the update's tensors make them.

    The tensors are loaded into a blank second set of parameters by the model's own loaders, which
    know how tensors are fused (q, k, v; gate, up) and sharded. What they wrote is compared with the
    live weights. Elements of other buckets stay NaN.
    """
    live = {module: dict(module._parameters) for module in model.modules()}
    try:
        _put_blanks(live)
        loaded = model.load_weights(read_tensors(update))
        expected = {module: dict(module._parameters) for module in live}
    finally:
        for module, parameters in live.items():
            module._parameters.update(parameters)
    differing = []
    # Tied parameters are compared under each of their names.
    for prefix, module in model.named_modules():
        for name, wanted in expected[module].items():
            if wanted is None or not wanted.is_floating_point():
                continue
            full_name = f"{prefix}.{name}"
            written = ~wanted.isnan()
            if not written.any():
                if full_name in loaded:
                    raise RuntimeError(f"{full_name}: the model's loader wrote nothing")
            elif not torch.equal(_live(module, name, wanted)[written], wanted[written]):
                differing.append(full_name)
    return differing


def _put_blanks(live: Mapping[torch.nn.Module, Parameters]) -> None:
    """Put a blank parameter in the place of every live one; tied ones stay tied."""
    blanks: dict[int, torch.Tensor] = {}  # by the id of the live parameter
    for module, parameters in live.items():
        for name, parameter in parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in blanks:
                blanks[id(parameter)] = _blank(module, name, parameter)
            module._parameters[name] = blanks[id(parameter)]


def _blank(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return a parameter that the model's loaders can load, filled with NaN."""
    recorded, _ = get_layerwise_info(module).restore_metadata
    if name in recorded:
        meta = restore_layer_refs(recorded[name], module)
    else:
        meta = to_meta_tensor(parameter)
    blank = materialize_meta_tensor(meta)
    # An update before this left its own wrapper of the loader, which loads nothing now.
    if hasattr(blank, "weight_loader"):
        blank.weight_loader = _get_original_loader(blank)
    return blank.fill_(torch.nan) if blank.is_floating_point() else blank


def _live(module: torch.nn.Module, name: str, like: torch.Tensor) -> torch.Tensor:
    """Return a parameter as the engine computes with it, on the CPU.

    vLLM's CPU linear layers keep their weight only inside a packed kernel. Multiplying the identity
    reads it back exactly: each sum has one term that is not 0.
    """
    parameter = module._parameters[name]
    assert parameter is not None
    if name == "weight" and hasattr(module, "cpu_linear"):
        identity = torch.eye(like.shape[1], dtype=like.dtype)
        parameter = module.cpu_linear(identity, parameter, None).t()
    return parameter.detach().to("cpu", like.dtype)


register()
