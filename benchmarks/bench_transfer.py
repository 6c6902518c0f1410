"""Weight transfer from learner ranks to an engine, through shared memory.

It is compared with one copy of the same bytes, and with a call a parameter.
"""

from __future__ import annotations

import json
import mmap
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.cluster import local_ray
from benchmarks.engines import MODEL
from benchmarks.result import Entry, at_least, at_most
from benchmarks.scripted import WaitingTools, right
from learner.config import LearnerConfig
from learner.learner import Learner
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings

ROUNDS = 3
LAYERS = 22
# Both models have the same layers, and so as many tensors.
LARGE = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LEARNER = LearnerConfig(ranks=2, cpus_per_rank=0.1, kl_beta=0.0, bucket_mb=64, deadline_s=900)
ROLLOUT = RolloutConfig(
    max_context_tokens=256,
    cpus_per_worker=0.1,
    health_s=300,
    engine=EngineConfig(
        dtype="float32",
        block_size=32,
        max_num_seqs=4,
        enforce_eager=True,
        kv_cache_gb=0.25,
        threads=2,
        weight_transfer="shared_memory",
    ),
)
READ_S = 60.0
"""Deadline of the process that reads."""


@dataclass(frozen=True)
class Model:
    """A random model on the disk."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class Connected:
    """A learner and an engine of one model."""

    learner: Learner
    pool: RolloutPool
    model: Model

    def seconds(self, rounds: int) -> float:
        """Return the median of some transfers."""
        return statistics.median(self.transfer(version) for version in range(rounds))

    def transfer(self, version: int) -> float:
        """Send the weights, and return the seconds."""
        begun = time.monotonic()
        self.learner.send_weights(self.pool.workers, version)
        return time.monotonic() - begun

    def one_bucket_a_parameter(self) -> None:
        """Make every parameter a bucket of its own, which a recipe may not ask for."""

        def change(actor: Any) -> None:
            sync = actor.rank._sync
            # Read first: if the learner renames this, the benchmark must fail, not compare nothing.
            assert sync._bucket_bytes > 0
            sync._bucket_bytes = 0

        ranks = self.learner._ranks
        ray.get([rank.__ray_call__.remote(change) for rank in ranks], timeout=READ_S)


def measure() -> list[Entry]:
    """Return the entries of a large model, and of one of as many tensors that are small."""
    with local_ray():
        return [_large(), _small()]


def _large() -> Entry:
    with _connected(LARGE) as connected:
        sync = connected.seconds(ROUNDS)
        model = connected.model
    copy = statistics.median(_copy(model.bytes) for _ in range(ROUNDS))
    detail = (
        f"{model.tensors} tensors, {model.bytes / 1e6:.0f} MB, 2 ZeRO-3 ranks to one engine: "
        f"{sync:.2f} s, gather and packing included; the same bytes into /dev/shm and out of it "
        f"in another process: {copy:.2f} s; medians of {ROUNDS}"
    )
    return at_most("transfer_vs_copy", round(sync / copy, 3), 3.0, "x", detail)


def _small() -> Entry:
    with _connected(SMALL) as connected:
        # They take milliseconds, so there is time for more of them.
        bucketed = connected.seconds(2 * ROUNDS)
        connected.one_bucket_a_parameter()
        single = connected.seconds(ROUNDS)
        model = connected.model
    detail = (
        f"{model.tensors} tensors, {model.bytes / 1e6:.1f} MB: {bucketed * 1e3:.0f} ms in buckets, "
        f"{single * 1e3:.0f} ms with a call a parameter; "
        f"the same code with a bucket a parameter, gathers still overlapped"
    )
    return at_least("transfer_vs_per_parameter", round(single / bucketed, 2), 5.0, "x", detail)


@contextmanager
def _connected(sizes: dict[str, int]) -> Iterator[Connected]:
    """Start a learner and an engine of one random model, and connect them."""
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder), sizes)
        pool = RolloutPool(WorkerSettings(folder, ROLLOUT, WaitingTools(), right, run_seed=0))
        learner = Learner(folder, LEARNER)
        try:
            pool.ready()
            connected = Connected(learner, pool, model)
            # The first transfer also connects.
            connected.transfer(0)
            yield connected
        finally:
            learner.shutdown()
            pool.shutdown()


def _model(folder: Path, sizes: dict[str, int]) -> Model:
    """Write a random Qwen3-VL with the embedded model's tokenizer and processor.

    Args:
        folder: the new model folder.
        sizes: of the language model.
    """
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    for file in Path(MODEL).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data["text_config"] |= sizes | {"num_hidden_layers": LAYERS}
    data["text_config"].pop("layer_types", None)
    data["vision_config"]["out_hidden_size"] = sizes["hidden_size"]
    # The sections share half of a head: time gets what the other two leave.
    half = sizes["head_dim"] // 2
    third = half // 3
    data["text_config"]["rope_parameters"]["mrope_section"] = [half - 2 * third, third, third]
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(data)).float()
    model.save_pretrained(folder)
    # Tied weights are one parameter here.
    parameters = list(model.parameters())
    return Model(len(parameters), sum(p.numel() * p.element_size() for p in parameters))


class _Reader:
    """Reads a file of shared memory into memory of its own."""

    def read(self, file: str) -> int:
        with (
            open(file, "rb") as source,
            mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            return len(bytearray(mapped))


def _copy(size: int) -> float:
    """Return the seconds to write bytes to shared memory and read them in another process."""
    data = bytearray(size)
    reader = ray.remote(_Reader).options(num_cpus=0).remote()
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="axpo-bench-") as file:
        file.write(b"0")
        file.flush()
        # Returns when the actor is up: its start is not part of the copy.
        ray.get(reader.read.remote(file.name), timeout=READ_S)
        file.seek(0)
        begun = time.monotonic()
        file.write(data)
        file.flush()
        # The reader copies, as an engine copies a bucket into its parameters.
        if ray.get(reader.read.remote(file.name), timeout=READ_S) != size:
            raise AssertionError("the reader saw another size")
        seconds = time.monotonic() - begun
    ray.kill(reader)
    return seconds
