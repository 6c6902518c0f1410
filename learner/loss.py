"""The token losses of AXPO (section 6): pure functions on flat vectors of M trained tokens.

    L = - sum_t w_t * ( min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t) - beta * KL_t )

rho_t = exp(logprob_t - old_t), old_t = the log-probability the token was sampled with. w_t = weight / trained tokens of
its trajectory, so that L is the weighted sum of per-trajectory means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLoss:
    """Sums over M tokens (and one maximum). `loss` carries the gradient; the other fields are detached scalars."""

    loss: Tensor
    policy_loss: Tensor  # the loss without its KL term
    kl: Tensor
    clipped: Tensor  # tokens where the clipped branch is the smaller
    ratio: Tensor
    ratio_max: Tensor
    gap: Tensor  # |logprob - old|


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """[M] -> [M]: min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be maximised."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """[M] -> [M]: the k3 estimate of KL(policy || reference), exp(d) - d - 1 with d = reference - logprobs; never negative."""
    d = reference - logprobs
    return d.exp() - d - 1


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    *,
    clip_low: float,
    clip_high: float,
    kl_beta: float,
) -> TokenLoss:
    """All tensors [M]; `reference` None where there is no KL term."""
    ratio = (logprobs - old_logprobs).exp()
    surrogate = clipped_surrogate(ratio, advantages, clip_low, clip_high)
    kl = k3(logprobs, reference) if reference is not None else torch.zeros_like(logprobs)
    policy = -(weights * surrogate).sum()
    loss = policy + kl_beta * (weights * kl).sum()
    with torch.no_grad():
        return TokenLoss(
            loss=loss,
            policy_loss=policy.detach(),
            kl=kl.sum(),
            clipped=(surrogate < ratio * advantages).sum(),
            ratio=ratio.sum(),
            ratio_max=torch.cat([ratio, ratio.new_zeros(1)]).max(),
            gap=(logprobs - old_logprobs).abs().sum(),
        )


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """[M] -> scalar: sum of w_t * -logprob_t (supervised fine-tuning)."""
    return -(weights * logprobs).sum()
