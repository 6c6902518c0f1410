"""The files of a user who brings an objective or a baseline of their own."""

from pathlib import Path

import pytest

OBJECTIVES = '''
from pydantic import Field

from learner.objectives import Objective


class Tapered(Objective):
    """REINFORCE whose weight falls with the distance from the policy that sampled."""

    width: float = Field(1.0, gt=0)

    def surrogate(self, logprobs, ratio, advantages):
        distance = (ratio.detach() - 1).abs()
        return (-distance / self.width).exp() * advantages * logprobs

    def clipped(self, surrogate, ratio, advantages):
        return ratio > 1 + self.width

    def divisor(self, lengths):
        return 2.0


def squared(logprobs, ratio, advantages):
    """Policy gradient that pulls the ratio back to 1."""
    return ratio * advantages - 0.5 * (ratio - 1) ** 2


class Empty(Objective):
    """Says nothing."""


def mean(logprobs, ratio, advantages):
    return (ratio * advantages).mean()


def two(logprobs, ratio):
    return ratio


NUMBER = 3
'''
BASELINES = '''
import numpy as np

from learner.baselines import Baseline


class Scaled(Baseline):
    """r - mean, times a factor."""

    factor: float = 1.0

    def advantages(self, rewards):
        return self.factor * (rewards - rewards.mean())


def median(rewards):
    """r - median."""
    return rewards - np.median(rewards)


def none():
    return 0


class Empty(Baseline):
    """Says nothing."""
'''
BROKEN = 'raise RuntimeError("no\\nluck")\n'


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working directory with modules `own_objectives`, `own_baselines`, `own_broken`."""
    (tmp_path / "own_objectives.py").write_text(OBJECTIVES)
    (tmp_path / "own_baselines.py").write_text(BASELINES)
    (tmp_path / "own_broken.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
