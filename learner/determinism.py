"""Kernels that give the same bits each time, on a GPU (`deterministic` in the recipe).

On a CPU the learner's operations repeat as they are.
"""

from __future__ import annotations

import os


def repeat_kernels() -> None:
    """Let torch use kernels that repeat, where it has them; it warns of each that it has not.

    Call it before the process uses its GPU: cuBLAS reads its setting once.
    """
    import torch

    # Workspaces of a fixed size: otherwise cuBLAS may split its sums anew in each call.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor with NaN would only find reads of memory that nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
