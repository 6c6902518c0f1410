"""Let the driver know that a worker has imported its packages.

A worker cannot be asked while it is being constructed, so it leaves a note in the store of the Ray
cluster. Nothing depends on the note but the order of a start.
"""

from __future__ import annotations

import ray
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put


def note_imported(worker: int) -> None:
    """Note that this process, a worker, has imported its packages."""
    if ray.is_initialized():
        _internal_kv_put(_key(worker), b"1")


def has_imported(worker: int) -> bool:
    """Tell whether a worker of this job has noted that it imported its packages."""
    return bool(_internal_kv_exists(_key(worker)))


def _key(worker: int) -> str:
    return f"axpo/imported/{ray.get_runtime_context().get_job_id()}/{worker}"
