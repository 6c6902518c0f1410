"""Objectives: the term of the policy loss that each trained token contributes.

`learner.loss.policy_loss` sums the terms. An objective says six things; only the first has no
default:

    surrogate  the token's term S_t, to be maximised
    ratio      rho_t, how much more likely the policy makes a token than the old policy did
    clipped    which terms clipping has changed, for the metric `clip_fraction`
    divisor    by what the sum over a trajectory's tokens is divided
    baseline   what is subtracted from rewards, unless `learner.credit.baseline` says otherwise
    zero_without_advantage
               that a token without advantage has no gradient, and need not be computed

An objective of your own is a subclass of `Objective` or a function with the parameters of
`surrogate`, named by its import path:

    learner: {objective: my_package.losses:mine}

Nothing here imports torch: the driver reads recipes, and the arithmetic is methods of tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, field_validator

from axpo.registry import Registry, Variant
from learner.baselines import Baseline, CenteredBaseline, GroupBaseline, LeaveOneOutBaseline

if TYPE_CHECKING:
    from torch import Tensor


class Objective(Variant):
    """How a policy loss is put together, for M trained tokens at a time."""

    baseline: ClassVar[Baseline] = GroupBaseline()
    """What credit uses, unless the recipe says otherwise."""
    zero_without_advantage: ClassVar[bool] = False
    """Whether the gradient of a token's term is 0 if its advantage is 0."""

    @abstractmethod
    def surrogate(self, logprobs: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return the term of each token, to be maximised.

        Args:
            logprobs: log-probabilities under the policy, shape [M]; they carry the gradient.
            ratio: what `ratio` returned, shape [M]; it carries the gradient too.
            advantages: shape [M].

        Returns:
            Terms, shape [M].
        """

    def ratio(self, logprobs: Tensor, old: Tensor, items: Tensor) -> Tensor:
        """Return the importance ratio of each token.

        Args:
            logprobs: log-probabilities under the policy, shape [M].
            old: log-probabilities under the policy that sampled, shape [M].
            items: which trajectory a token belongs to, counted from 0, shape [M].

        Returns:
            Ratios, shape [M].
        """
        return (logprobs - old).exp()

    def clipped(self, surrogate: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return whether clipping has changed the term of each token, shape [M]."""
        return surrogate < ratio * advantages

    def divisor(self, lengths: Sequence[int]) -> float | None:
        """Return the number of tokens by which the sum over a trajectory's tokens is divided.

        Args:
            lengths: trained tokens of each trajectory of the mini-batch.

        Returns:
            Tokens; None: each trajectory is divided by its own length, so that it counts as a mean.
        """
        return None


objectives: Registry[Objective] = Registry(
    "objectives", Objective, core="surrogate", default="clip"
)


@objectives.register("clip")
class Clip(Objective):
    """Clipped surrogate, a mean over each trajectory's tokens: GRPO, and AXPO's (rule 6)."""

    zero_without_advantage: ClassVar[bool] = True
    clip_low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.4, gt=0, description="the ratio is clipped above 1 + clip_high")

    def surrogate(self, logprobs: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)."""
        # The minimum makes the bounds count only on the side on which the term would gain.
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return (ratio * advantages).minimum(bounded * advantages)


class _DividedByConstant(Objective):
    """Divide the sum over a trajectory's tokens by one constant."""

    loss_length: int = Field(
        0,
        ge=0,
        validate_default=True,
        description="tokens by which a trajectory's sum is divided: its longest response",
    )

    @field_validator("loss_length")
    @classmethod
    def _given(cls, tokens: int) -> int:
        # The longest response depends on the recipe, so no default would be right.
        if not tokens:
            raise ValueError("the objective divides by it; expected the longest response in tokens")
        return tokens

    def divisor(self, lengths: Sequence[int]) -> float | None:
        """Return the constant."""
        return float(self.loss_length)


class _DividedByMeanLength(Objective):
    """Divide the sum over a trajectory's tokens by the mean length of the mini-batch."""

    def divisor(self, lengths: Sequence[int]) -> float | None:
        """Return the mean, so that the loss is a mean over all tokens of the mini-batch."""
        return float(np.mean(lengths))


@objectives.register("dr_grpo")
class DrGrpo(_DividedByConstant, Clip):
    """Clipped surrogate, sums divided by one constant (Dr.GRPO, arXiv 2503.20783).

    Its baseline does not divide rewards by their standard deviation.
    """

    baseline: ClassVar[Baseline] = CenteredBaseline()


@objectives.register("dapo")
class Dapo(_DividedByMeanLength, Clip):
    """Clipped surrogate, a mean over all tokens of the batch (arXiv 2503.14476, equation 8)."""


@objectives.register("rloo")
class Rloo(_DividedByConstant):
    """REINFORCE, unclipped; the baseline is the mean of the other rollouts (arXiv 2402.14740)."""

    baseline: ClassVar[Baseline] = LeaveOneOutBaseline()
    zero_without_advantage: ClassVar[bool] = True

    def surrogate(self, logprobs: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return rho A; at ratio 1 its gradient is A grad log pi."""
        return ratio * advantages


@objectives.register("gspo")
class Gspo(Clip):
    """Clipped surrogate of whole trajectories (arXiv 2507.18071, equations 5 and 7).

    Its bounds are much narrower than those of `clip`: the paper has clip_low 3e-4, clip_high 4e-4.
    """

    def ratio(self, logprobs: Tensor, old: Tensor, items: Tensor) -> Tensor:
        """Return exp(mean_t(logprob_t - old_t)): the geometric mean over the token's trajectory."""
        return item_means(logprobs - old, items)[items].exp()


@objectives.register("cispo")
class Cispo(_DividedByMeanLength):
    """Policy gradient weighted by the bounded ratio (arXiv 2506.13585, equation 4)."""

    zero_without_advantage: ClassVar[bool] = True
    clip_high: float = Field(0.4, gt=0, description="the ratio is bounded by 1 + clip_high")

    def surrogate(self, logprobs: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return stopgrad(min(rho, 1 + clip_high)) A logprob: no token loses its gradient."""
        return ratio.detach().clamp(max=1 + self.clip_high) * advantages * logprobs

    def clipped(self, surrogate: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return whether the ratio was above its bound."""
        return ratio > 1 + self.clip_high


def item_sums(values: Tensor, items: Tensor) -> Tensor:
    """Return the sum over the tokens of each item.

    Args:
        values: one number for each token, shape [M].
        items: which item a token belongs to, counted from 0, shape [M].

    Returns:
        Sums, shape [items].
    """
    count = int(items.max()) + 1 if len(items) else 0
    return values.new_zeros(count).index_add(0, items, values)


def item_means(values: Tensor, items: Tensor) -> Tensor:
    """Return the mean over the tokens of each item, shape [items]; see `item_sums`."""
    counts = item_sums(values.new_ones(values.shape), items)
    return item_sums(values, items) / counts.clamp(min=1)
