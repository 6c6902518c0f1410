"""Weight transfer, learner ranks to engine, through shared memory: against one copy of the same bytes, and against a call a parameter."""

from __future__ import annotations

import json
import mmap
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from benchmarks.engines import MODEL, WaitingTools, right
from learner.config import LearnerConfig
from learner.learner import Learner
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings

ROUNDS = 3
LAYERS = 22
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


def measure() -> list[dict[str, Any]]:
    """Entries `transfer_vs_copy` (a large model) and `transfer_vs_per_parameter` (as many tensors, small)."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        with _connected(LARGE) as (learner, pool, tensors, size):
            sync = statistics.median(_sync(learner, pool, step) for step in range(ROUNDS))
        copy = statistics.median(_copy(size) for _ in range(ROUNDS))
        large = f"{tensors} tensors, {size / 1e6:.0f} MB, 2 ZeRO-3 ranks to one engine: {sync:.2f} s, gather and packing included"
        with _connected(SMALL) as (learner, pool, tensors, size):
            bucketed = statistics.median(_sync(learner, pool, step) for step in range(2 * ROUNDS))
            _bucket_bytes(learner, 0)
            single = statistics.median(_sync(learner, pool, step) for step in range(ROUNDS))
        small = f"{tensors} tensors, {size / 1e6:.1f} MB: {bucketed * 1e3:.0f} ms in buckets, {single * 1e3:.0f} ms with a call a parameter"
    finally:
        ray.shutdown()
    return [
        {
            "name": "transfer_vs_copy",
            "value": round(sync / copy, 3),
            "target": 3.0,
            "better": "lower",
            "unit": "x",
            "detail": f"{large}; the same bytes into /dev/shm and out of it in another process: {copy:.2f} s; medians of {ROUNDS}",
        },
        {
            "name": "transfer_vs_per_parameter",
            "value": round(single / bucketed, 2),
            "target": 5.0,
            "better": "higher",
            "unit": "x",
            "detail": f"{small}; the same code with a bucket a parameter, gathers still overlapped",
        },
    ]


@contextmanager
def _connected(sizes: dict[str, int]) -> Iterator[tuple[Learner, RolloutPool, int, int]]:
    """A learner and an engine of one random model; its number of tensors and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        tensors, size = _model(Path(folder), sizes)
        pool = RolloutPool(WorkerSettings(folder, ROLLOUT, WaitingTools(), right, run_seed=0))
        learner = Learner(folder, LEARNER)
        try:
            pool.ready()
            _sync(learner, pool, 0)
            yield learner, pool, tensors, size
        finally:
            learner.shutdown()
            pool.shutdown()


def _model(folder: Path, sizes: dict[str, int]) -> tuple[int, int]:
    """Writes a random Qwen3-VL of the given text sizes, with the embedded model's tokenizer and processor."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    for file in Path(MODEL).iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    data["text_config"] |= sizes | {"num_hidden_layers": LAYERS}
    data["text_config"].pop("layer_types", None)
    data["vision_config"]["out_hidden_size"] = sizes["hidden_size"]
    section = sizes["head_dim"] // 2
    data["text_config"]["rope_parameters"]["mrope_section"] = [
        section - 2 * (section // 3),
        section // 3,
        section // 3,
    ]
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(data)).float()
    model.save_pretrained(folder)
    parameters = list(model.parameters())
    return len(parameters), sum(p.numel() * p.element_size() for p in parameters)


def _sync(learner: Learner, pool: RolloutPool, version: int) -> float:
    begun = time.monotonic()
    learner.send_weights(pool.workers, version)
    return time.monotonic() - begun


def _bucket_bytes(learner: Learner, megabytes: int) -> None:
    """Megabytes of a bucket on all ranks; 0: a bucket a parameter, which a recipe may not ask for."""

    def change(actor: Any) -> None:
        actor.rank.config = actor.rank.config.model_copy(update={"bucket_mb": megabytes})

    ray.get([rank.__ray_call__.remote(change) for rank in learner._ranks], timeout=60)


class _Reader:
    def read(self, file: str) -> int:
        with (
            open(file, "rb") as source,
            mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            return len(bytearray(mapped))


def _copy(size: int) -> float:
    """Seconds to write as many bytes to shared memory, and to read them into its own memory in another process."""
    data = bytearray(size)
    reader = ray.remote(_Reader).options(num_cpus=0).remote()
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="axpo-bench-") as file:
        file.write(b"0")
        file.flush()
        ray.get(reader.read.remote(file.name), timeout=60)  # the actor is up
        file.seek(0)
        begun = time.monotonic()
        file.write(data)
        file.flush()
        if ray.get(reader.read.remote(file.name), timeout=60) != size:
            raise AssertionError("the reader saw another size")
        seconds = time.monotonic() - begun
    ray.kill(reader)
    return seconds
