"""What one rank computes: train items become micro-batches, a gradient, and an update.

The gradient is a plain sum over items wherever they lie, so it does not depend on the ranks, the
micro-batches or the layout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.images import ImageStore
from learner.passes import Pass, Passes
from learner.reference import Reference
from learner.stats import TokenStats
from learner.steps import FineTuningStep, Outcome, PolicyStep, take_step
from rollout_workers.trajectory import Floats

LOGPROBS, ENTROPIES = 0, 1
"""Which output of the policy; see `learner.policy.Policy.forward`."""


class Updater:
    """Change the policy of one rank. Every method is collective: all ranks get the same calls."""

    def __init__(
        self,
        engine: Any,
        reference: Reference | None,
        passes: Passes,
        config: LearnerConfig,
        seed: int,
    ) -> None:
        """Take over an engine.

        Args:
            engine: DeepSpeed's, of a `Policy`.
            reference: the reference policy; None: the loss has no KL term.
            passes: lays out the items.
            config: the learner's settings.
            seed: deals the questions out to mini-batches.
        """
        self.skipped_in_a_row = 0
        self._engine = engine
        self._reference = reference
        self._passes = passes
        self._config = config
        self._seed = seed

    def update(self, items: list[TrainItem]) -> dict[str, float]:
        """Take the optimizer steps of one batch on the policy loss; see `Learner.update`."""
        started = time.monotonic()
        config = self._config
        lr = self._engine.get_lr()[0]
        stats = TokenStats()
        questions = [item.question.id for item in items]
        # The count of optimizer steps is in the seed: a resumed run deals as an unbroken one does.
        seed = [self._seed, self._engine.global_steps]
        parts = list(deal(questions, config.epochs, config.mini_batches, seed))
        # With a correction the ratio is to the learner's policy before the first step. Of several
        # steps only the first could compute that along the way, so it is computed ahead.
        old: list[Floats] | None = None
        store = self._passes.images(passes=len(parts))
        if config.correction != "none" and len(parts) > 1:
            old = self._gathered_logprobs(items, store)
        outcomes = []
        for number, part in enumerate(parts):
            pass_ = self._planned(part, items, store, old)
            step = PolicyStep(
                self._engine, self._reference, config, stats, number=number, count=len(parts)
            )
            outcomes.append(take_step(self._engine, self._passes, pass_, step.loss))
            self._count_skipped(outcomes[-1])
        seconds = time.monotonic() - started
        return self._metrics(items, outcomes, lr, seconds) | stats.summary()

    def fine_tune(self, items: list[TrainItem]) -> dict[str, float]:
        """Take one optimizer step on -log pi; see `Learner.fine_tune`."""
        started = time.monotonic()
        lr = self._engine.get_lr()[0]
        stats = TokenStats()
        step = FineTuningStep(self._engine, stats)
        pass_ = self._passes.plan(items, self._passes.images())
        outcome = take_step(self._engine, self._passes, pass_, step.loss)
        self._count_skipped(outcome)
        seconds = time.monotonic() - started
        return self._metrics(items, [outcome], lr, seconds) | stats.summary()

    def logprobs(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """Compute this rank's share of the log-probabilities.

        Returns:
            Pairs of an item's index and the log-probabilities of its masked tokens, shape [R], 0
            elsewhere.
        """
        return self._of_tokens(items, LOGPROBS, self._passes.images())

    def entropies(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """Compute this rank's share of the entropies.

        Returns:
            Pairs of an item's index and, at its masked tokens, the nats of the distributions that
            they are drawn from, shape [R], 0 elsewhere.
        """
        return self._of_tokens(items, ENTROPIES, self._passes.images())

    def _planned(
        self,
        part: MiniBatch,
        items: Sequence[TrainItem],
        store: ImageStore,
        old: Sequence[Floats] | None,
    ) -> Pass:
        """Plan the pass of a mini-batch: its items, but for those that cannot change the policy.

        Args:
            part: which of the items.
            items: of the batch.
            store: of the update's images.
            old: see `Passes.plan`, for all items of the batch.
        """
        chosen = part.of(items)
        # Of all its items: what is not computed counts in the mean.
        divisor = self._config.objective.divisor([int(item.mask.sum()) for item in chosen])
        needed = with_gradient(chosen, self._config)
        needed_old = [old[part.indices[i]] for i in needed] if old is not None else None
        return self._passes.plan([chosen[i] for i in needed], store, divisor, needed_old)

    def _of_tokens(
        self, items: list[TrainItem], output: int, store: ImageStore
    ) -> list[tuple[int, Floats]]:
        pass_ = self._passes.plan(items, store)
        out: list[tuple[int, Floats]] = []
        batches = self._passes.micro_batches(pass_)
        for step, batch in zip(pass_.steps, batches, strict=True):
            with torch.no_grad():
                values = self._engine(batch)[output].cpu().numpy()
            owner = batch.items.cpu().numpy()
            # From the micro-batch's flat tokens back to each item's response.
            for b, i in enumerate(self._passes.mine(step)):
                whole = np.zeros(len(items[i].mask), np.float32)
                whole[items[i].mask] = values[owner == b]
                out.append((i, whole))
        return out

    def _gathered_logprobs(self, items: list[TrainItem], store: ImageStore) -> list[Floats]:
        """Return the log-probabilities of every item, shape [R], on every rank."""
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self._of_tokens(items, LOGPROBS, store))
        by_index: dict[int, Floats] = {}
        for share in shares:
            by_index.update(share)
        return [by_index[i] for i in range(len(items))]

    def _count_skipped(self, outcome: Outcome) -> None:
        self.skipped_in_a_row = 0 if outcome.applied else self.skipped_in_a_row + 1

    def _metrics(
        self, items: Sequence[TrainItem], outcomes: Sequence[Outcome], lr: float, seconds: float
    ) -> dict[str, float]:
        return {
            "loss": float(np.mean([o.loss for o in outcomes])),
            "policy_loss": float(np.mean([o.policy_loss for o in outcomes])),
            "grad_norm": float(np.mean([o.grad_norm for o in outcomes])),
            "lr": lr,
            "skipped": float(sum(not o.applied for o in outcomes)),
            "skipped_in_a_row": float(self.skipped_in_a_row),
            "optimizer_steps": float(len(outcomes)),
            "trained_tokens": float(sum(item.mask.sum() for item in items)),
            "tokens": float(sum(o.tokens for o in outcomes)),
            "computed_tokens": float(sum(o.computed_tokens for o in outcomes)),
            "micro_steps": float(sum(o.micro_steps for o in outcomes)),
            "seconds": seconds,
        }


@dataclass(frozen=True)
class MiniBatch:
    """The items of one optimizer step, as indices into those of the batch."""

    indices: list[int]
    scale: float
    """Questions of the batch / questions of the mini-batch: a step is a mean over its own."""

    def of(self, items: Sequence[TrainItem]) -> list[TrainItem]:
        """Return the items, with weights grown by `scale`."""
        return [replace(items[i], weight=items[i].weight * self.scale) for i in self.indices]


def with_gradient(items: Sequence[TrainItem], config: LearnerConfig) -> list[int]:
    """Return the items that can change the policy: all, unless there is no KL term.

    Without it, an item whose advantages are all 0 has no gradient: a rollout of a group that was
    all right or all wrong. If no item has one, all are returned: the optimizer takes its step on a
    gradient of 0, because its momentum and weight decay change the policy all the same.

    Args:
        items: of a mini-batch.
        config: its `kl_beta` and objective.

    Returns:
        Indices into `items`.
    """
    everyone = list(range(len(items)))
    if config.kl_beta > 0 or not config.objective.zero_without_advantage:
        return everyone
    return [i for i in everyone if np.any(items[i].advantages[items[i].mask])] or everyone


def deal(
    questions: Sequence[str], epochs: int, mini_batches: int, seed: Sequence[int]
) -> Iterator[MiniBatch]:
    """Yield the mini-batch of each optimizer step.

    Every epoch deals the questions out at random; all items of a question stay together.

    Args:
        questions: the question of each item of the batch.
        epochs: passes over the batch.
        mini_batches: optimizer steps of a pass; at most one for each question.
        seed: of the random order; the epoch is added to it.
    """
    distinct = list(dict.fromkeys(questions))
    parts = min(mini_batches, len(distinct))
    for epoch in range(epochs):
        order = np.arange(len(distinct))
        # The order of questions in one mini-batch does not matter, so no random number is drawn.
        if parts > 1:
            order = np.random.default_rng([*seed, epoch]).permutation(len(distinct))
        for chosen in np.array_split(order, parts):
            names = {distinct[i] for i in chosen}
            indices = [i for i, question in enumerate(questions) if question in names]
            yield MiniBatch(indices, len(distinct) / len(names))
