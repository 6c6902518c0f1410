"""Optimizer steps: the two losses of the learner, and how one step is taken on either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from learner.batch import MicroBatch
from learner.config import LearnerConfig
from learner.loss import TrainedTokens, gap_correction, nll_loss, policy_loss
from learner.passes import Pass, Passes
from learner.reference import Reference
from learner.stats import TokenStats


@dataclass(frozen=True)
class MicroLoss:
    """The loss of one micro-batch, summed over its tokens."""

    total: Tensor  # scalar; carries the gradient
    policy: Tensor  # scalar: without the KL term


@dataclass(frozen=True)
class Outcome:
    """One optimizer step. If the loss or the gradient was not finite, nothing was applied."""

    loss: float
    policy_loss: float
    grad_norm: float
    applied: bool
    micro_steps: int
    tokens: int
    computed_tokens: int


@dataclass(frozen=True)
class PolicyStep:
    """The policy loss and its KL term, in one of the optimizer steps of an update."""

    engine: Any  # DeepSpeed's, of a Policy
    reference: Reference | None  # None: there is no KL term
    config: LearnerConfig
    stats: TokenStats
    number: int  # of this step in the update, from 0
    count: int  # steps of the update

    def loss(self, batch: MicroBatch) -> MicroLoss:
        """Compute the loss of a micro-batch and keep the numbers of its tokens. Collective."""
        config = self.config
        reference = self.reference(batch) if self.reference is not None else None
        logprobs, entropies = self.engine(batch)
        now = logprobs.detach()
        corrected = config.correction != "none"
        # With a correction the ratio is to the learner's own policy before the update. If this is
        # the only step, that is the policy as it is now.
        old = now if corrected and self.count == 1 else batch.old_logprobs
        tokens = TrainedTokens(
            logprobs=logprobs,
            old=old,
            advantages=batch.advantages,
            weights=batch.weights,
            items=batch.items,
            correction=gap_correction(old, batch.engine_logprobs, batch.items, config),
            reference=reference,
        )
        out = policy_loss(tokens, config.objective, config.kl_beta)
        self.stats.add(ratio=out.ratio, kl=out.kl, clipped=out.clipped, entropy=entropies)
        if corrected:
            self.stats.add(correction=out.correction)
        if self.number == 0:  # the policy is still the one that the engine sampled from
            self.stats.add(gap=now - batch.engine_logprobs)
        return MicroLoss(out.loss, out.policy_loss)


@dataclass(frozen=True)
class FineTuningStep:
    """The negative log-likelihood of supervised fine-tuning."""

    engine: Any  # DeepSpeed's, of a Policy
    stats: TokenStats

    def loss(self, batch: MicroBatch) -> MicroLoss:
        """Compute the loss of a micro-batch and keep the numbers of its tokens. Collective."""
        logprobs, entropies = self.engine(batch)
        total = nll_loss(logprobs, batch.weights)
        self.stats.add(entropy=entropies)
        return MicroLoss(total, total)


def take_step(
    engine: Any, passes: Passes, pass_: Pass, loss: Callable[[MicroBatch], MicroLoss]
) -> Outcome:
    """Take one optimizer step on the sum of a pass's losses. Collective.

    Args:
        engine: DeepSpeed's, of a `Policy`.
        passes: builds the micro-batches.
        pass_: over the items of the step.
        loss: computes the loss of a micro-batch.
    """
    # Loss, policy loss and computed tokens of this rank.
    sums = torch.zeros(3, dtype=torch.float64)
    for number, batch in enumerate(passes.micro_batches(pass_)):
        # gradient_accumulation_steps is 1: the boundary is ours, so the number of micro-batches
        # may change from step to step.
        engine.set_gradient_accumulation_boundary(number == len(pass_.steps) - 1)
        losses = loss(batch)
        sums += _scalars(losses.total, losses.policy, batch.input_ids.numel())
        # DeepSpeed averages gradients over ranks; the loss is a sum over items wherever they lie.
        engine.backward(losses.total * dist.get_world_size())
    sums = sums.to(engine.device)
    dist.all_reduce(sums)
    norm, applied = float("nan"), False
    # The sum is that of all ranks, so all of them step, or none does.
    if bool(torch.isfinite(sums[0])):
        engine.step()  # skips by itself if the gradient is not finite
        norm, applied = float(engine.get_global_grad_norm()), engine.was_step_applied()
    else:
        engine.optimizer.zero_grad()
    return Outcome(
        loss=float(sums[0]),
        policy_loss=float(sums[1]),
        grad_norm=norm,
        applied=applied,
        micro_steps=len(pass_.steps),
        tokens=pass_.tokens,
        computed_tokens=int(sums[2]),
    )


def _scalars(*values: Tensor | int) -> Tensor:
    floats = [float(v.detach()) if isinstance(v, Tensor) else float(v) for v in values]
    return torch.tensor(floats, dtype=torch.float64)
