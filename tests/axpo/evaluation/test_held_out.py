"""What is measured: a recipe's model, or a run's last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.evaluation.held_out import load_target
from axpo.record.run import RunDirectory

DEBUG = "deploy/recipes/debug.yaml"


def test_a_target_is_a_recipe_or_a_run(tmp_path):
    recipe, model = load_target(Path(DEBUG), ["seed=5"])
    assert (recipe.seed, model) == (5, "axpo/models/qwen3-vl-tiny")
    with RunDirectory.create("run", load_recipe(DEBUG).model_dump(mode="json"), tmp_path) as run:
        with pytest.raises(AxpoError, match="no complete checkpoint"):
            load_target(run.path)
        for step in (1, 2):
            run.checkpoints.path(step).mkdir(parents=True)
    recipe, model = load_target(run.path, ["evaluation.samples=8"])
    assert (recipe.name, recipe.evaluation.samples) == ("debug", 8)
    assert model == str(run.checkpoints.path(2) / "hf")
    with pytest.raises(AxpoError, match="is not a run directory"):
        load_target(tmp_path)
