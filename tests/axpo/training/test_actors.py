"""In which order the actors of a run start."""

from __future__ import annotations

import pytest

from axpo.config import load_recipe
from axpo.placement import make_plan, uniform
from axpo.training.actors import _engines_first


@pytest.mark.parametrize(("cores", "first"), [(2, True), (3, True), (4, False), (16, False)])
def test_ranks_wait_for_the_engines_imports_if_cores_are_few(cores, first):
    # Two ranks, and two processes that import vLLM.
    recipe = load_recipe("demo")
    assert _engines_first(recipe, make_plan(recipe, uniform(1, 0, cores))) is first
