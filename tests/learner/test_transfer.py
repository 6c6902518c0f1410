"""NCCL and CUDA IPC between ZeRO-3 ranks and engines, with what a GPU does replaced.

vLLM's own sending and receiving engines run, in bfloat16 and with adapters that are merged. Not
run here: NCCL itself, CUDA memory, and vLLM's model, which the tests of the engines load weights
into.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from safetensors.torch import load, load_file

import learner.learner
from axpo.sft.embedded import build
from learner.config import LearnerConfig, LoraSettings, Serving
from learner.learner import Learner, RanksLost, Start
from learner.learner import _RankActor as RankActor
from rollout_workers import ipc_handles
from rollout_workers.engine_updates import as_file
from tests.learner import fake_gpu
from tests.learner.multimodal import make_items

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
BUFFER = 1 << 16
TP = 2
CONFIG = LearnerConfig(
    ranks=2,
    dtype="bfloat16",
    lr=0.02,
    kl_beta=0.0,
    lora=LoraSettings(rank=4, alpha=8, targets=("q_proj", "down_proj")),
    deadline_s=200,
)


class Rank(RankActor):
    """A rank whose GPU has a name."""

    def start(self, settings: Any) -> None:
        super().start(settings)
        fake_gpu.install(f"GPU-{settings.rank}")

    def use(self, backend: str, processes: int) -> int:
        """Send in another way from now on; return the bytes of the largest tensor."""
        from learner.senders import largest_tensor

        sync = self.rank._sync
        sync._serving = replace(sync._serving, weight_transfer=backend, ranks_per_engine=processes)
        sync._bucket_bytes = BUFFER
        sync._sender = None  # connect anew, though the engines are the same
        return largest_tensor(sync._model)

    def adapters(self) -> dict[str, Any]:
        from learner import lora

        assert self.rank.config.lora is not None
        return lora.payload(self.rank._sync._model, self.rank.config.lora)


class Engine:
    """The weight-transfer engines of one rollout worker's processes, and what they received."""

    def become(self, backend: str, gpus: list[str]) -> None:
        """Start anew: with this backend, one process on each of the GPUs."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
        from vllm.distributed.weight_transfer.packed_tensor import PackedBufferImporter
        from vllm.distributed.weight_transfer.sparse_nccl_engine import (
            SparseNCCLWeightTransferEngine,
        )

        classes = {
            "ipc": IPCWeightTransferEngine,
            "nccl": NCCLWeightTransferEngine,
            "sparse_nccl": SparseNCCLWeightTransferEngine,
        }
        fake_gpu.install(gpus[0])
        self.handles = backend == "ipc"
        # Changes are written into the weights that are there.
        self.keeps = backend == "sparse_nccl"
        self.elements = 0  # that the last update brought
        self.received: list[dict[str, torch.Tensor]] = [{} for _ in gpus]
        self.version = 0
        self.processes = []
        for rank, received in enumerate(self.received):
            cls = classes[backend]
            engine = cls.__new__(cls)
            keep = _written_into if self.keeps else _kept_in
            engine.model = SimpleNamespace(load_weights=keep(received))
            engine.device = torch.device("cpu")
            engine.parallel_config = SimpleNamespace(
                data_parallel_index=0, world_size=len(gpus), rank=rank
            )
            engine._packed_importer = PackedBufferImporter()
            engine.model_update_group = None
            self.processes.append(engine)

    def init_weight_transfer(self, info: dict[str, Any]) -> None:
        self._all(lambda engine: engine.init_transfer_engine(engine.parse_init_info(info)))

    def start_weight_update(self) -> None:
        self.elements = 0
        for received in self.received:
            if not self.keeps:
                received.clear()

    def update_weights(self, payload: dict[str, Any]) -> None:
        if self.handles:
            payload = ipc_handles.unpack(ipc_handles.pack(payload))
        self.elements += sum(payload.get("num_updates_list", ()))
        self._all(lambda engine: engine.receive_weights(engine.parse_update_info(payload)))

    def finish_weight_update(self, version: int) -> int:
        self.version = version
        for engine in self.processes:
            engine._packed_importer.close()
        return version

    def spoil(self, name: str) -> None:
        """Let the second process hold another value in one element."""
        self.received[1][name].view(-1)[-1] += 1

    def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Compare with a bucket that came as bytes, as an engine on another machine does."""
        assert payload.keys() == {"tensors", "bytes"}
        from rollout_workers.weight_transfer import SharedMemoryUpdate, read_tensors

        with as_file(payload) as bucket:
            sent = dict(read_tensors(SharedMemoryUpdate(**bucket)))
        return [
            name
            for name, tensor in sent.items()
            if not all(torch.equal(received[name], tensor) for received in self.received)
        ]

    def state(self) -> tuple[int, list[dict[str, Any]]]:
        return self.version, [
            {name: t.view(torch.int16).numpy() for name, t in received.items()}
            for received in self.received
        ]

    def elements_brought(self) -> int:
        return self.elements

    def _all(self, call: Any) -> None:
        """Call it for all processes at once: a collective waits for each of them."""
        errors: list[Exception] = []

        def guarded(engine: Any) -> None:
            try:
                call(engine)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(e,)) for e in self.processes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def end_in_the_next_update(self) -> None:
        """End this process at the third broadcast from now on."""
        wire = self.processes[0].model_update_group
        receive, last = wire.broadcast, wire.broadcasts + 2

        def broadcast(tensor: torch.Tensor, src: int = 0, stream: object = None) -> None:
            if wire.broadcasts == last:
                os._exit(1)
            receive(tensor, src, stream)

        wire.broadcast = broadcast


def _kept_in(received: dict[str, torch.Tensor]) -> Any:
    def load_weights(weights: Any) -> None:
        for name, tensor in weights:
            assert name not in received
            received[name] = tensor.clone()

    return load_weights


def _written_into(received: dict[str, torch.Tensor]) -> Any:
    def load_weights(weights: Any) -> None:
        for name, tensor in weights:
            if name not in received:
                received[name] = torch.zeros_like(tensor)
            received[name].copy_(tensor)

    return load_weights


@pytest.fixture(scope="module")
def pair(cluster: None) -> list[Any]:
    """Two engines. Importing vLLM takes them longer than all else."""
    return [ray.remote(num_cpus=0)(Engine).remote() for _ in range(2)]


def become(engine: Any, backend: str, *gpus: str) -> Any:
    """Let an engine start anew; return it."""
    ray.get(engine.become.remote(backend, list(gpus)), timeout=120)
    return engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("model") / "tiny", ["a few words to learn from"]))


def start(model: str, config: LearnerConfig) -> Learner:
    serving = Serving(weight_transfer="nccl", ranks_per_engine=TP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.learner, "_RankActor", Rank)
        return Learner(model, config, Start(serving=serving))


@pytest.fixture(scope="module")
def ranks(model: str, cluster: None) -> Iterator[Learner]:
    ranks = start(model, CONFIG)
    yield ranks
    ranks.shutdown()
    for file in Path(tempfile.gettempdir()).glob("axpo-gpu-*"):
        file.unlink()


def use(ranks: Learner, backend: str, processes: int = TP) -> int:
    """Let the ranks send in this way; return the bytes of the largest tensor."""
    asked = [rank.use.remote(backend, processes) for rank in ranks._ranks]
    return ray.get(asked, timeout=60)[0]


def exported(ranks: Learner, folder: Path) -> dict[str, Any]:
    """Return the bits of the weights that the learner saves."""
    ranks.save(str(folder))
    tensors = load_file(folder / "hf" / "model.safetensors")
    return {name: tensor.view(torch.int16).numpy() for name, tensor in tensors.items()}


def check_received(
    engines: list[Any], version: int, expected: dict[str, Any], processes: int
) -> None:
    for confirmed, of_processes in ray.get([e.state.remote() for e in engines], timeout=60):
        assert confirmed == version
        assert len(of_processes) == processes
        for received in of_processes:
            assert received.keys() == expected.keys()
            assert all(np.array_equal(received[name], expected[name]) for name in expected)


def check_two_rounds(
    ranks: Learner, engines: list[Any], model: str, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send, train and send again; compare with what the learner exports, and return both."""
    for version in (1, 2):
        ranks.send_weights(engines, version)
        expected = exported(ranks, folder / str(version))
        check_received(engines, version, expected, TP)
        if version == 1:
            before = expected
            ranks.update(make_items(model, 4, advantage=1.0))
    changed = {name for name in before if not np.array_equal(before[name], expected[name])}
    assert changed == {
        n for n in before if "language_model" in n and ("q_proj" in n or "down_proj" in n)
    }
    return before, expected


def test_nccl_brings_merged_weights_to_every_process_of_every_engine(
    ranks: Learner, pair: list[Any], model: str, tmp_path: Path
) -> None:
    assert use(ranks, "nccl") > BUFFER
    engines = [become(pair[0], "nccl", "GPU-2", "GPU-3"), become(pair[1], "nccl", "GPU-4", "GPU-5")]
    base, merged = check_two_rounds(ranks, engines, model, tmp_path)
    check_adapters_alone_are_the_same_policy(ranks, base, merged)
    check_sync_names_the_parameter_that_differs(ranks, engines)


def check_adapters_alone_are_the_same_policy(
    ranks: Learner, base: dict[str, Any], merged: dict[str, Any]
) -> None:
    """What `sync: adapters` would send, over the base, is what the engines got merged."""
    payload, _ = ray.get([rank.adapters.remote() for rank in ranks._ranks], timeout=60)
    assert (payload["config"]["r"], payload["config"]["lora_alpha"]) == (4, 8)
    factors = load(payload["tensors"])
    changed = 0
    for name in base:
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" not in factors:
            continue
        a, b = factors.pop(f"{layer}.lora_A.weight"), factors.pop(f"{layer}.lora_B.weight")
        weight = torch.from_numpy(base[name]).view(torch.bfloat16).float()
        policy = (weight + 8 / 4 * (b.float() @ a.float())).to(torch.bfloat16)
        assert np.array_equal(policy.view(torch.int16).numpy(), merged[name])
        changed += 1
    assert not factors
    assert changed == 2 * 4  # two targets in each layer


def check_sync_names_the_parameter_that_differs(ranks: Learner, engines: list[Any]) -> None:
    assert ranks._all("check_weights")[0] == []
    name = "model.language_model.layers.0.self_attn.k_proj.weight"
    ray.get(engines[1].spoil.remote(name), timeout=60)
    assert ranks._all("check_weights")[0] == [name]


def test_ipc_brings_merged_weights_through_a_buffer_of_the_largest_tensor(
    ranks: Learner, pair: list[Any], model: str, tmp_path: Path
) -> None:
    assert use(ranks, "ipc") > BUFFER
    engines = [become(pair[0], "ipc", "GPU-0", "GPU-0"), become(pair[1], "ipc", "GPU-1", "GPU-1")]
    check_two_rounds(ranks, engines, model, tmp_path)


def test_an_engine_killed_in_a_broadcast_ends_the_ranks_within_the_deadline_of_a_sync(
    ranks: Learner, pair: list[Any], model: str
) -> None:
    """The last test of these ranks and engines."""
    use(ranks, "nccl")
    engines = [become(pair[0], "nccl", "GPU-2", "GPU-3"), become(pair[1], "nccl", "GPU-4", "GPU-5")]
    # All connect first, so that the deadline is over in a broadcast, however crowded the machine.
    ranks.send_weights(engines, 3)
    ray.get(engines[1].end_in_the_next_update.remote(), timeout=60)
    pids = ray.get([rank.__ray_call__.remote(lambda self: os.getpid()) for rank in ranks._ranks])
    processes = [psutil.Process(pid) for pid in pids]
    ranks.config = CONFIG.model_copy(update={"sync_s": 5.0})
    begun = time.monotonic()
    with pytest.raises(RanksLost, match=r"weight update 4 failed: .* within learner.sync_s=5"):
        ranks.send_weights(engines, 4)
    took = time.monotonic() - begun
    print(f"\nranks ended {took:.1f} s after the sync began")
    # Of the 200 s of other calls. What is above 5 s is the machine's.
    assert 5 <= took < 20
    with pytest.raises(RanksLost, match="weight update 4"):
        ranks.update(make_items(model, 1))
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


@pytest.mark.slow
def test_sparse_nccl_brings_what_has_changed_and_new_engines_get_all(
    model: str, cluster: None, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"lora": None, "lr": 1e-4})
    ranks = start(model, config)
    try:
        use(ranks, "sparse_nccl", processes=1)
        three = [ray.remote(num_cpus=0)(Engine).remote() for _ in range(3)]
        new = become(three.pop(), "sparse_nccl", "GPU-4")
        engines = [become(made, "sparse_nccl", "GPU-2") for made in three]
        brought = []
        for version in (1, 2, 3):
            if version == 3:
                engines = [engines[0], new]
            ranks.send_weights(engines, version)
            expected = exported(ranks, tmp_path / str(version))
            check_received(engines, version, expected, 1)
            brought.append(ray.get(engines[1].elements_brought.remote(), timeout=60))
            if version == 1:
                first = expected
                ranks.update(make_items(model, 4, advantage=1.0))
            if version == 2:
                changed = sum(int((expected[n] != first[n]).sum()) for n in expected)
        everything = sum(bits.size for bits in expected.values())
        print(f"\n{changed} of {everything} elements changed")
        assert brought == [everything, changed, everything]
        assert 0 < changed < 0.9 * everything
        ray.kill(ranks._ranks[1])
        with pytest.raises(RanksLost, match="a rank of the learner ended during update"):
            ranks.update(make_items(model, 4, advantage=1.0))
    finally:
        ranks.shutdown()
