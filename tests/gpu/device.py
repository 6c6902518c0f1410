"""The device of these tests: one GPU, or a CPU in a dry run."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import TypeVar

import torch

DRY_RUN = os.environ.get("AXPO_GPU_DRY_RUN") == "1"
"""Run on a CPU what can run there, with tiny shapes: it shows that the tests are sound."""
CUDA = torch.cuda.is_available() and not DRY_RUN
DEVICE = "cuda" if CUDA else "cpu"
GIB = 2**30

T = TypeVar("T")


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns and the seconds that the device took for it."""
    synchronize()
    started = time.monotonic()
    out = work()
    synchronize()
    return out, time.monotonic() - started


def with_peak(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns and the GiB that it took at most; 0 on a CPU."""
    if not CUDA:
        return work(), 0.0
    gc.collect()
    synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = work()
    synchronize()
    return out, (torch.cuda.max_memory_allocated() - before) / GIB


def reserved() -> float:
    """Return the GiB that this process holds of the GPU, as torch counts them; 0 on a CPU."""
    return torch.cuda.memory_reserved() / GIB if CUDA else 0.0
