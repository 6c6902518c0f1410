"""What a checkpoint holds.

It is the policy as a Hugging Face folder, and the state that training needs to go on exactly.
`learner.manifest` says how it becomes whole on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from axpo.plain_files import NotPlain, inside_model
from learner import lora
from learner.weights import Named, gathered, plan_buckets

SHARD_BYTES = 4 << 30
"""Most bytes of weights in a file, as the learner keeps them."""
WEIGHT_FILES = (".safetensors", ".bin", ".index.json")

Write: TypeAlias = Callable[[], object]
"""Writes one file; what it holds does not change any more."""


class Saving:
    """Keep the save under way, on a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._future: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Call `work` on the thread; the save before must have been waited for."""
        self._future = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the save raised, once, if it is over."""
        if self._future is not None and self._future.done():
            self.wait(0)

    def wait(self, seconds: float) -> None:
        """Wait until the save is over.

        Raises:
            Exception: what the save raised, once.
            TimeoutError: it was not over in time.
        """
        if self._future is not None:
            # This raises TimeoutError and keeps the save; what the save raised is only returned.
            self._future.exception(seconds)
            over, self._future = self._future, None
            over.result()


@contextlib.contextmanager
def in_memory(checkpoint_engine: Any, later: Callable[[Write], object]) -> Iterator[None]:
    """Keep in host memory, as bytes, what DeepSpeed saves inside the block.

    Args:
        checkpoint_engine: DeepSpeed's.
        later: gets a write for each file.
    """
    real = checkpoint_engine.save

    def save(state_dict: Any, path: str) -> None:
        buffer = io.BytesIO()
        real(state_dict, buffer)
        later(partial(Path(path).write_bytes, buffer.getbuffer()))

    # An attribute of the instance hides the method of its class; deleting it brings that back.
    checkpoint_engine.save = save
    try:
        yield
    finally:
        del checkpoint_engine.save


@dataclass(frozen=True)
class Export:
    """A Hugging Face folder that is to be written."""

    source: Path
    """Model folder whose config, tokenizer and processor files are copied."""
    folder: Path
    dtype: torch.dtype
    """Of the weights."""
    bucket_bytes: int
    """Weights that are whole on a device at a time."""


def save_hf(model: nn.Module, export: Export, rank: int, write: Callable[[Write], object]) -> None:
    """Save the policy as a Hugging Face folder. Collective.

    Args:
        model: the partitioned policy.
        export: what to write.
        rank: this rank; the first one writes.
        write: gets a write for each file of weights, and may call it at once or later.
    """
    shards = plan_buckets(lora.exported(model), SHARD_BYTES)
    files = _Files([[name for name, _ in shard] for shard in shards], export, write)
    # Gathering is collective: the other ranks go through the loop for nothing but that. A bucket is
    # whole on every rank's device, a file in the first one's host memory.
    for tensors in gathered(model, export.bucket_bytes):
        if rank == 0:
            files.add(tensors)
    if rank == 0:
        files.finish()
        _copy_other_files(export)


class _Files:
    """Put weights, as they come, into the files of a folder."""

    def __init__(
        self, shards: list[list[str]], export: Export, write: Callable[[Write], object]
    ) -> None:
        """Write each list of names into a file of its own."""
        self._shards = shards
        self._export = export
        self._write = write
        self._number = 0  # of the file that is being filled
        self._copies: dict[str, Tensor] = {}
        self._weight_map: dict[str, str] = {}

    def add(self, tensors: Named) -> None:
        """Take the next weights, and write the file if it is full."""
        for name, tensor in tensors:
            # A copy: the gathered tensor is valid until the next bucket only.
            copy = tensor.to("cpu", self._export.dtype, copy=True)
            self._copies[name] = copy.contiguous()
            if len(self._copies) == len(self._shards[self._number]):
                self._write_file()

    def finish(self) -> None:
        """Write the index, if there are several files."""
        if len(self._shards) > 1:
            index = json.dumps({"metadata": {}, "weight_map": self._weight_map}, indent=2)
            (self._export.folder / "model.safetensors.index.json").write_text(index)

    def _write_file(self) -> None:
        name = _shard_name(self._number, len(self._shards))
        self._weight_map |= dict.fromkeys(self._copies, name)
        self._export.folder.mkdir(parents=True, exist_ok=True)
        file = self._export.folder / name
        self._write(partial(_write_weights, self._copies, file))
        self._number += 1
        self._copies = {}


def _write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of weights, with the permissions of any other file."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, {"format": "pt"})
    file.chmod(mode)  # safetensors leaves it to its owner alone


def _shard_name(number: int, shards: int) -> str:
    if shards == 1:
        return "model.safetensors"
    return f"model-{number + 1:05d}-of-{shards:05d}.safetensors"


def _copy_other_files(export: Export) -> None:
    """Copy the files of the model folder; a checkpoint may be published, a link leads anywhere."""
    for file in export.source.iterdir():
        if file.name.endswith(WEIGHT_FILES):
            continue
        with contextlib.suppress(NotPlain):
            real = inside_model(export.source, file.name)
            if real.is_file():
                shutil.copyfile(real, export.folder / file.name)
    config = json.loads((export.source / "config.json").read_text())
    config = _with_dtype(config, str(export.dtype).split(".")[-1])
    (export.folder / "config.json").write_text(json.dumps(config, indent=2))


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Load inside the block what holds weights and numbers only.

    DeepSpeed unpickles its files, and a pickle is a program. With torch's list of what may be in
    it, a checkpoint from elsewhere runs nothing.

    Raises:
        ValueError: a file holds something else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # Numpy's random state is an array, which is pickled as a call of a function of numpy's.
    reconstruct = np.zeros(1).__reduce__()[0]
    arrays = [np.ndarray, np.dtype, np.dtypes.UInt32DType, reconstruct]
    real = torch.load

    def load(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **(options | {"weights_only": True}))

    torch.load = load
    try:
        with torch.serialization.safe_globals(
            [*arrays, ZeroStageEnum, LossScaler, DynamicLossScaler]
        ):
            yield
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"a checkpoint that holds more than numbers: {reason}") from None
    finally:
        torch.load = real


def random_states() -> dict[str, Any]:
    """Return the states of every random generator that this process has."""
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
    """Load a DeepSpeed checkpoint that another number of ranks wrote. Collective.

    It goes through DeepSpeed's universal format, which is written beside the checkpoint and removed
    again.

    Args:
        engine: DeepSpeed's.
        state: folder of the checkpoint.
        rank: this rank; the first one converts.

    Returns:
        The client state of the first of the ranks that wrote it.
    """
    universal = state.with_name("universal")
    if rank == 0:
        _convert(state, universal)
    # The others must not read what is not yet written.
    dist.barrier()
    configured = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = True
    try:
        _, client = engine.load_checkpoint(str(state.parent), tag=universal.name)
    finally:
        engine._config.load_universal_checkpoint = configured
    # Nor may it be removed while one of them still reads.
    dist.barrier()
    if rank == 0:
        shutil.rmtree(universal)
        (state.parent / "latest_universal").unlink()
    return client


def _convert(state: Path, universal: Path) -> None:
    """Write a checkpoint in DeepSpeed's universal format."""
    from deepspeed.checkpoint import ds_to_universal

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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        ds_to_universal.main(arguments)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config with every stated dtype replaced; its sub-configs may have their own."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out[key] = _with_dtype(value, dtype)
        elif key in ("dtype", "torch_dtype"):
            out[key] = dtype
        else:
            out[key] = value
    return out
