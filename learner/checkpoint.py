"""What a checkpoint holds: the policy as a Hugging Face folder, and what training needs to go on exactly."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from learner import lora
from learner.weights import gathered, plan_buckets

SHARD_BYTES = 4 << 30
WEIGHT_FILES = (".safetensors", ".bin", ".index.json")


Write = Callable[[], object]
"""Writes one file; what it holds does not change any more."""


class Saving:
    """The save under way, on a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._future: Future[None] | None = None

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work` there; the save before must have been waited for."""
        self._future = self._thread.submit(work, *arguments)

    def check(self) -> None:
        """Raise what the save raised, once, if it is over."""
        if self._future is not None and self._future.done():
            self.wait(0)

    def wait(self, seconds: float) -> None:
        """Until it is over. Raises what it raised, once, or TimeoutError."""
        if self._future is not None:
            self._future.exception(seconds)
            over, self._future = self._future, None
            over.result()


@contextlib.contextmanager
def in_memory(checkpoint_engine: Any, later: Callable[[Write], object]) -> Iterator[None]:
    """What DeepSpeed's checkpoint engine saves in this block stays in host memory, as bytes; `later` gets a write for each file."""
    real = checkpoint_engine.save

    def save(state_dict: Any, path: str) -> None:
        buffer = io.BytesIO()
        real(state_dict, buffer)
        later(partial(Path(path).write_bytes, buffer.getbuffer()))

    checkpoint_engine.save = save
    try:
        yield
    finally:
        del checkpoint_engine.save


def save_hf(
    model: nn.Module,
    source: Path,
    folder: Path,
    dtype: torch.dtype,
    rank: int,
    write: Callable[[Write], object],
) -> None:
    """Weights as `dtype`, with config, tokenizer and processor files of the model folder `source`. Collective.

    `write` gets a write for each file of weights, and may call it at once or later.
    """
    from safetensors.torch import save_file

    shards = len(plan_buckets(lora.exported(model), SHARD_BYTES))
    where: dict[str, str] = {}
    for i, tensors in enumerate(gathered(model, SHARD_BYTES)):
        if rank == 0:
            file = (
                "model.safetensors"
                if shards == 1
                else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            )
            folder.mkdir(parents=True, exist_ok=True)
            copies = {
                name: tensor.to("cpu", dtype, copy=True).contiguous() for name, tensor in tensors
            }
            write(partial(save_file, copies, folder / file, {"format": "pt"}))
            where |= {name: file for name, _ in tensors}
    if rank != 0:
        return
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where}, indent=2)
        )
    for file_ in source.iterdir():
        if file_.is_file() and not file_.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file_, folder / file_.name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(_with_dtype(config, str(dtype).split(".")[-1]), indent=2)
    )


def random_states() -> dict[str, Any]:
    """Of every generator that this process has."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def load_other_ranks(engine: Any, state: Path, rank: int) -> dict[str, Any]:
    """Load a DeepSpeed checkpoint that another number of ranks wrote, through DeepSpeed's universal format. Collective.

    Returns the client state of the first of those ranks. The conversion is written beside the checkpoint and removed again.
    """
    from deepspeed.checkpoint import ds_to_universal

    universal = state.with_name("universal")
    if rank == 0:
        shutil.rmtree(universal, ignore_errors=True)
        arguments = argparse.Namespace(
            input_folder=str(state),
            output_folder=str(universal),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            ds_to_universal.main(arguments)
    dist.barrier()
    configured = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = True
    try:
        _, client = engine.load_checkpoint(str(state.parent), tag=universal.name)
    finally:
        engine._config.load_universal_checkpoint = configured
    dist.barrier()
    if rank == 0:
        shutil.rmtree(universal)
        (state.parent / "latest_universal").unlink()
    return client


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with every stated dtype (its sub-configs may have their own) replaced."""
    out = {
        key: _with_dtype(value, dtype) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    return out | {key: dtype for key in ("dtype", "torch_dtype") if key in out}
