"""CUDA IPC handles as bytes, which is how they reach an engine's processes.

A handle holds types of torch, which vLLM's messages refuse unless VLLM_ALLOW_INSECURE_SERIALIZATION
is set. That variable would let every message of the engine carry any pickle. Here one call of ours
carries a pickle, and its reader knows the names that a handle consists of and no other.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

_HANDLE = {
    ("torch", "Tensor"): torch.Tensor,
    ("torch", "Size"): torch.Size,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
}


class _HandleReader(pickle.Unpickler):
    """Read plain data and the types of a handle; refuse all else."""

    def find_class(self, module: str, name: str) -> Any:
        known = _HANDLE.get((module, name))
        if known is None and module == "torch":
            # A dtype is pickled as the name of a constant of torch.
            constant = getattr(torch, name, None)
            known = constant if isinstance(constant, torch.dtype) else None
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a CUDA IPC handle")
        return known


def pack(payload: dict[str, Any]) -> bytes:
    """Return a payload with handles as bytes."""
    return pickle.dumps(payload)


def unpack(data: bytes) -> dict[str, Any]:
    """Return the payload of `pack`. Raises pickle.UnpicklingError if it holds anything else."""
    payload: dict[str, Any] = _HandleReader(io.BytesIO(data)).load()
    return payload
