"""The code of docs/change-the-method.md is taken from the page and used as the page says."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from axpo.config import Recipe, load_recipe
from resampler.config import ResamplerConfig
from resampler.select import Rules, candidates
from tests.axpo.helpers import TOKENS, direct, group, zooming

DEBUG = Path("deploy/recipes/debug.yaml").absolute()
PAGE = Path("docs/change-the-method.md").read_text(encoding="utf-8")
MODULES = ("my_objective", "my_ranking", "my_place")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with every file of the page, as a user would have it."""
    for name, content in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "axpo").symlink_to(Path("axpo").absolute())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def recipe_with(file: Path) -> Recipe:
    section, settings = next(iter(yaml.safe_load(file.read_text(encoding="utf-8")).items()))
    key, value = next(iter(settings.items()))
    return load_recipe(DEBUG, [f"{section}.{key}={yaml.safe_dump(value, default_flow_style=True)}"])


def rules_of(config: ResamplerConfig) -> Rules:
    return Rules(TOKENS, config.fork_at, config.ranking, seed=1)


def test_an_own_objective_is_one_file_and_one_key(folder):
    objective = recipe_with(folder / "objective.yaml").learner.objective
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    ratio = torch.tensor([1.0, 1.5])
    surrogate = objective.surrogate(logprobs, ratio, torch.tensor([1.0, -1.0]))
    # By hand: the second token is 0.5 away, one width of 0.5, so its weight is 1/e.
    assert surrogate.tolist() == pytest.approx([-1.0, 2.0 / np.e])
    surrogate.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([1.0, -1.0 / np.e])


def test_an_own_ranking_is_one_file_and_one_key(folder):
    config = recipe_with(folder / "ranking.yaml").resampler
    failed = group([zooming(0, 0.0), zooming(1, 0.0), direct(2, 1.0)])
    found = candidates(failed, rules_of(config), batch=0, place=0)
    # Every token of the helpers' rollouts was sampled with probability 0.5.
    assert [candidate.score for candidate in found] == pytest.approx([0.5, 0.5])


def test_an_own_fork_place_is_one_file_and_one_key(folder):
    config = recipe_with(folder / "place.yaml").resampler
    failed = group([zooming(0, 0.0), direct(1, 0.0)])
    found = candidates(failed, rules_of(config), batch=0, place=0)
    ids = failed.rollouts[0].response_ids
    assert [candidate.rollout for candidate in found] == [0]
    assert ids[found[0].prefix_tokens - 1] == TOKENS.call_open
