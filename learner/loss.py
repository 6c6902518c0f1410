"""The token losses: pure functions on flat vectors of M trained tokens.

    L = - sum_t w_t * ( c_t * S_t - beta * KL_t )

    S_t   the term of the objective (`learner.objectives`), of the ratio rho_t and the advantage A_t
    w_t   the token's weight
    c_t   corrects for what the engine sampled with other numerics than the learner's; 1 without
    KL_t  the k3 estimate of KL(policy || reference)

Which token gets which advantage and weight is the work of `learner.credit`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.objectives import Objective, item_sums


@dataclass(frozen=True)
class TrainedTokens:
    """What the policy loss reads of M trained tokens."""

    logprobs: Tensor  # [M] under the policy; carries the gradient
    old: Tensor  # [M] log-probabilities that the ratio compares with
    advantages: Tensor  # [M]
    weights: Tensor  # [M]
    items: Tensor  # [M] which item of the micro-batch a token belongs to, from 0
    correction: Tensor  # [M] see `gap_correction`
    reference: Tensor | None = None  # [M] log-probabilities of the reference; None: no KL term


@dataclass(frozen=True)
class TokenLoss:
    """A policy loss. `loss` carries the gradient; all else is detached."""

    loss: Tensor  # scalar
    policy_loss: Tensor  # scalar: the loss without its KL term
    ratio: Tensor  # [M]
    kl: Tensor  # [M]
    clipped: Tensor  # [M] 1 if clipping changed the token's term
    correction: Tensor  # [M]


def policy_loss(tokens: TrainedTokens, objective: Objective, kl_beta: float) -> TokenLoss:
    """Compute the policy loss of a micro-batch (docs/method.md, rule 6).

    Args:
        tokens: the trained tokens of the micro-batch.
        objective: the surrogate and its ratio.
        kl_beta: weight of the KL term.

    Returns:
        The loss, summed over the tokens, and what the metrics need of each token.

    Raises:
        ValueError: the surrogate does not have a term for each token.
    """
    logprobs, weights = tokens.logprobs, tokens.weights
    ratio = objective.ratio(logprobs, tokens.old, tokens.items)
    surrogate = objective.surrogate(logprobs, ratio, tokens.advantages)
    # A scalar, say, would be broadcast without a word.
    if surrogate.shape != logprobs.shape:
        raise ValueError(
            f"learner.objective={objective.name!r}: its surrogate has shape "
            f"{list(surrogate.shape)}; expected a term for each token, {list(logprobs.shape)}"
        )
    if tokens.reference is not None:
        kl = k3(logprobs, tokens.reference)
    else:
        kl = torch.zeros_like(logprobs)
    # The correction is for the sampling of the surrogate; the KL term is not weighted by it.
    policy = -(weights * tokens.correction * surrogate).sum()
    loss = policy + kl_beta * (weights * kl).sum()
    with torch.no_grad():
        clipped = objective.clipped(surrogate, ratio, tokens.advantages)
    return TokenLoss(
        loss=loss,
        policy_loss=policy.detach(),
        ratio=ratio.detach(),
        kl=kl.detach(),
        clipped=clipped.to(ratio.dtype),
        correction=tokens.correction,
    )


def nll_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of w_t * -logprob_t over tokens of shape [M] (supervised fine-tuning)."""
    return -(weights * logprobs).sum()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy || reference) at each token.

    Args:
        logprobs: log-probabilities under the policy, shape [M].
        reference: log-probabilities under the reference policy, shape [M].

    Returns:
        exp(d) - d - 1 with d = reference - logprobs, shape [M]; never negative
        (schulman.dev/blog/kl-approx).
    """
    d = reference - logprobs
    return d.exp() - d - 1


def gap_correction(learner: Tensor, engine: Tensor, items: Tensor, config: LearnerConfig) -> Tensor:
    """Weigh tokens whose log-probabilities differ between engine and learner.

    The weight follows from w = exp(learner - engine), of the token or, with `correction_level`
    "sequence", of its whole trajectory (the product over its tokens). `correction` is

        none      1
        truncate  min(w, cap): truncated importance sampling
        mask      1 if 1/cap <= w <= cap, else 0

    Args:
        learner: log-probabilities that the learner computes, shape [M].
        engine: log-probabilities that the engine sampled with, shape [M].
        items: which trajectory a token belongs to, counted from 0, shape [M].
        config: its `correction`, `correction_level` and `correction_cap`.

    Returns:
        Weights, shape [M].
    """
    if config.correction == "none":
        return torch.ones_like(learner)
    gap = learner - engine
    if config.correction_level == "sequence":
        gap = item_sums(gap, items)[items]
    if config.correction == "truncate":
        return gap.exp().clamp(max=config.correction_cap)
    # In logarithms: |log w| <= log cap.
    within = gap.abs() <= torch.tensor(config.correction_cap).log()
    return within.to(gap.dtype)
