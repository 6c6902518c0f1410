"""The token losses: pure functions on flat vectors of M trained tokens. Which token gets which advantage is `learner.credit`'s.

    L = - sum_t w_t * ( c_t * S_t - beta * KL_t )

S_t is the objective's surrogate of the ratio rho_t = exp(logprob_t - old_t), w_t the token's weight, c_t the correction for
what the engine sampled with other numerics than the learner's (1 without). An objective is one row of `OBJECTIVES`:

    clip     min(rho A, clip(rho, 1 - low, 1 + high) A), mean over each trajectory's tokens: GRPO, and AXPO's (docs/method.md, rule 6)
    dr_grpo  the same, sums over tokens divided by one constant (arXiv 2503.20783); advantages without the std (LearnerConfig.baseline)
    dapo     the same as clip, mean over all tokens of the batch (arXiv 2503.14476, equation 8)
    rloo     rho A: REINFORCE (its baseline is the mean of the other rollouts; arXiv 2402.14740), sums like dr_grpo's
    gspo     clip with the ratio of the whole trajectory, exp(mean_t(logprob_t - old_t)) (arXiv 2507.18071, equations 5 and 7);
             its bounds are much narrower: clip_low 3e-4, clip_high 4e-4 in the paper
    cispo    stopgrad(min(rho, 1 + high)) A logprob, mean over all tokens (arXiv 2506.13585, equation 4): no token loses its gradient
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.config import LearnerConfig


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """[M] -> [M]: min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be maximised."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def token_ratio(logprobs: Tensor, old: Tensor, items: Tensor) -> Tensor:
    """[M]: exp(logprob - old) of each token."""
    return (logprobs - old).exp()


def sequence_ratio(logprobs: Tensor, old: Tensor, items: Tensor) -> Tensor:
    """[M]: the geometric mean of the token ratios of the token's own trajectory; `items` [M] says which that is."""
    return item_means(logprobs - old, items)[items].exp()


def clip(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """[M] PPO's surrogate with asymmetric bounds."""
    return clipped_surrogate(ratio, advantages, clip_low, clip_high)


def reinforce(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """[M] importance-weighted policy gradient, unclipped; at ratio 1 its gradient is A grad log pi."""
    return ratio * advantages


def cispo(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """[M] policy gradient weighted by the ratio, which is bounded from above and carries no gradient."""
    return ratio.detach().clamp(max=1 + clip_high) * advantages * logprobs


@dataclass(frozen=True)
class Objective:
    """How a policy loss is put together."""

    surrogate: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = clip
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor] = token_ratio
    length: Literal["own", "mean", "constant"] = (
        "own"  # by which a trajectory's sum over tokens is divided
    )


OBJECTIVES: dict[str, Objective] = {
    "clip": Objective(),
    "dr_grpo": Objective(length="constant"),
    "dapo": Objective(length="mean"),
    "rloo": Objective(surrogate=reinforce, length="constant"),
    "gspo": Objective(ratio=sequence_ratio),
    "cispo": Objective(surrogate=cispo, length="mean"),
}


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[M] -> [M]: the k3 estimate of KL(policy || reference), exp(d) - d - 1 with d = reference - logprobs; never negative."""
    d = reference - logprobs
    return d.exp() - d - 1


def gap_correction(
    learner: Tensor, engine: Tensor, items: Tensor, mode: str, level: str, cap: float
) -> Tensor:
    """[M] weights for tokens that the engine sampled with `engine` log-probabilities where the learner computes `learner`.

    w = exp(learner - engine), of the token or of its whole trajectory (the product over its tokens). "truncate": min(w, cap)
    (truncated importance sampling); "mask": 1 where 1/cap <= w <= cap, else 0; "none": 1.
    """
    if mode == "none":
        return torch.ones_like(learner)
    gap = learner - engine
    if level == "sequence":
        gap = item_sums(gap, items)[items]
    if mode == "truncate":
        return gap.exp().clamp(max=cap)
    return (gap.abs() <= torch.tensor(cap).log()).to(gap.dtype)


@dataclass(frozen=True)
class TokenLoss:
    """`loss` carries the gradient; the rest is detached, [M] where not said otherwise."""

    loss: Tensor  # scalar
    policy_loss: Tensor  # scalar: the loss without its KL term
    ratio: Tensor
    kl: Tensor
    clipped: Tensor  # 1 where clipping changed the token's term
    correction: Tensor


def policy_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    weights: Tensor,
    items: Tensor,
    reference: Tensor | None,
    correction: Tensor,
    config: LearnerConfig,
) -> TokenLoss:
    """All tensors [M]; `reference` None where there is no KL term."""
    objective = OBJECTIVES[config.objective]
    ratio = objective.ratio(logprobs, old, items)
    surrogate = objective.surrogate(logprobs, ratio, advantages, config.clip_low, config.clip_high)
    kl = k3(logprobs, reference) if reference is not None else torch.zeros_like(logprobs)
    policy = -(weights * correction * surrogate).sum()
    loss = policy + config.kl_beta * (weights * kl).sum()
    with torch.no_grad():
        clipped = (
            ratio > 1 + config.clip_high
            if objective.surrogate is cispo
            else surrogate < ratio * advantages
        )
        return TokenLoss(
            loss, policy.detach(), ratio.detach(), kl.detach(), clipped.to(ratio.dtype), correction
        )


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """[M] -> scalar: sum of w_t * -logprob_t (supervised fine-tuning)."""
    return -(weights * logprobs).sum()


def item_sums(values: Tensor, items: Tensor) -> Tensor:
    """[M] -> [items]: sums over the tokens of each item."""
    count = int(items.max()) + 1 if len(items) else 0
    return values.new_zeros(count).index_add(0, items, values)


def item_means(values: Tensor, items: Tensor) -> Tensor:
    """[M] -> [items]: means over the tokens of each item."""
    return item_sums(values, items) / item_sums(torch.ones_like(values), items).clamp(min=1)
