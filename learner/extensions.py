"""What DeepSpeed would compile at first use: left out where nobody needs it, else built behind a lock that no killed process can keep."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(offload_optimizer: bool = False) -> None:
    """Call once in a process, before `deepspeed.init_distributed`.

    `offload_optimizer` builds DeepSpeed's CPU Adam (minutes on two busy cores, seconds where that was done before). Raises RuntimeError
    where that is not possible, with the compiler's message.
    """
    import deepspeed

    # Collectives over shared memory, used by inference on CPU only.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if offload_optimizer:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        folder = Path(
            os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix, "torch_extensions"), "axpo"
        )
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        os.environ["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        )  # ninja is there
        build(CPUAdamBuilder().load, folder)


def build(load: Callable[[], Any], folder: Path) -> None:
    """Runs `load`, which builds below `folder`, while no other process of ours does.

    torch takes a file named `lock` for a build in progress and waits until it is gone, without end where the build was killed. An
    flock ends with its process, so whoever holds ours knows that such a file is stale.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = (folder / "axpo.lock").open("w")
    except OSError as error:
        raise RuntimeError(
            f"no place to build DeepSpeed's extensions: {error}; name another one in TORCH_EXTENSIONS_DIR"
        ) from error
    with held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for stale in folder.glob("*/lock"):
            stale.unlink()
        load()
