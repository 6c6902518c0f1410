"""The switch for kernels that repeat: where it is refused, and what it sets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from axpo.config import load_recipe
from axpo.errors import AxpoError
from learner.determinism import repeat_kernels

GPU = "deploy/recipes/qwen3-vl-2b-thinking.yaml"


@pytest.fixture
def torch_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def test_the_recipes_switch_reaches_the_ranks() -> None:
    assert not load_recipe(GPU).serving.deterministic
    assert load_recipe(GPU, ["deterministic=true"]).serving.deterministic


def test_the_switch_is_refused_on_cpus() -> None:
    with pytest.raises(AxpoError, match="deterministic=True: chooses kernels of GPUs"):
        load_recipe("deploy/recipes/debug.yaml", ["deterministic=true"])


def test_ranks_take_kernels_that_repeat(torch_as_before: None) -> None:
    repeat_kernels()
    assert torch.are_deterministic_algorithms_enabled()
    # An operation without such a kernel is told of, and does not end the run.
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
