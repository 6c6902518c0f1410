"""Tests for machines with a GPU: `make test-gpu`. None of them has run on a GPU yet.

Tier 1 (`test_learner.py`, `test_kernels.py`) needs one GPU, torch, transformers and DeepSpeed. Tier
2 (`test_engines.py`) needs a GPU build of vLLM and Ray as well, and two GPUs in part. With
AXPO_GPU_DRY_RUN=1 everything that can runs on a CPU, with tiny shapes.
"""

from __future__ import annotations

import os

import pytest

from tests.gpu.device import CUDA, DRY_RUN
from tests.gpu.figures import Figures

if not CUDA:
    os.environ["DS_ACCELERATOR"] = "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not CUDA and not DRY_RUN:
            item.add_marker(pytest.mark.skip(reason="no GPU; AXPO_GPU_DRY_RUN=1 tries the tests"))


@pytest.fixture(scope="session")
def figures() -> Figures:
    """Take the numbers of a test; on a GPU they are in the results when it ends."""
    return Figures(recording=CUDA)
