"""What DeepSpeed would compile at first use.

What nobody needs is left out. The rest is built behind a lock that no killed process can keep.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NO_COMPILER = "TORCHDYNAMO_DISABLE"


def prepare(*, offload_optimizer: bool = False) -> None:
    """Prepare DeepSpeed's extensions, once in a process, before `deepspeed.init_distributed`.

    Args:
        offload_optimizer: build DeepSpeed's CPU Adam (minutes on two busy cores, seconds if that
            was done before).

    Raises:
        RuntimeError: that is not possible; with the compiler's message.
    """
    import deepspeed

    # Collectives over shared memory, used by inference on CPU only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if offload_optimizer:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix, "torch_extensions")
        folder = Path(root, "axpo")
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        # ninja lies beside the interpreter.
        beside = str(Path(sys.executable).parent)
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
        build(CPUAdamBuilder().load, folder)


@contextmanager
def no_muon_kernels() -> Iterator[None]:
    """Let a block import DeepSpeed's Muon, which nobody uses, without torch's compiler for it.

    `deepspeed.initialize` imports it to compare the optimizer with it: 1.2 s of CPU.
    """
    before = os.environ.get(_NO_COMPILER)
    # torch reads it when a function is decorated. What is compiled later is not concerned.
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_COMPILER]
        else:
            os.environ[_NO_COMPILER] = before


def build(load: Callable[[], Any], folder: Path) -> None:
    """Run `load`, which builds below `folder`, while no other process of ours does.

    torch takes a file named `lock` for a build in progress and waits until it is gone: without end
    if the build was killed. An flock ends with its process, so whoever holds ours knows that such a
    file is stale.

    Raises:
        RuntimeError: nothing can be written below `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / "axpo.lock").open("w")
    except OSError as error:
        raise RuntimeError(
            f"no place to build DeepSpeed's extensions: {error}; "
            "name another one in TORCH_EXTENSIONS_DIR"
        ) from error
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink()
        load()
