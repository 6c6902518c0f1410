"""Baselines: what is subtracted from the rewards of a group, and whether the rest is divided.

A group is the N rollouts of one question, or the K continuations of one prefix: `learner.credit`
applies the baseline in each of its streams. A baseline of your own is a class here or elsewhere, or
a function of the rewards:

    learner: {credit: {baseline: my_package.baselines:median}}
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.registry import Registry, Variant

Rewards: TypeAlias = NDArray[np.float64]
"""One number for each rollout of a group, shape [N]."""

EPS = 1e-6
"""Added to a standard deviation, so that a group of equal rewards gets advantages of 0."""


class Baseline(Variant):
    """Turn the rewards of one group into advantages."""

    @abstractmethod
    def advantages(self, rewards: Rewards) -> Rewards:
        """Return the advantage of each rollout, shape [N], for rewards of shape [N]."""


baselines: Registry[Baseline] = Registry("baselines", Baseline, core="advantages")


@baselines.register("group")
class GroupBaseline(Baseline):
    """Subtract the mean and divide by the population's standard deviation (GRPO)."""

    def advantages(self, rewards: Rewards) -> Rewards:
        """Return (r - mean) / (std + EPS)."""
        return (rewards - rewards.mean()) / (rewards.std() + EPS)


@baselines.register("centered")
class CenteredBaseline(Baseline):
    """Subtract the mean, divide by nothing (Dr.GRPO, arXiv 2503.20783)."""

    def advantages(self, rewards: Rewards) -> Rewards:
        """Return r - mean."""
        return rewards - rewards.mean()


@baselines.register("leave_one_out")
class LeaveOneOutBaseline(Baseline):
    """Subtract the mean of the other N - 1 rewards (RLOO, arXiv 2402.14740)."""

    def advantages(self, rewards: Rewards) -> Rewards:
        """Return N / (N - 1) * (r - mean), which is r minus the mean of the others."""
        # In this form one mean does for all rollouts.
        others = len(rewards) - 1
        return (rewards - rewards.mean()) * (len(rewards) / others)
