"""What one rank computes: train items become micro-batches, micro-batches a gradient, gradients an update.

The gradient is a plain sum over items wherever they lie, so it does not depend on ranks, micro-batches or layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learner import lora
from learner.batch import MicroBatch, Row, StepImages, VisionTokens, collate, make_row
from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.loss import OBJECTIVES, gap_correction, nll_loss, policy_loss
from learner.plan import Steps, plan_rows
from learner.stats import TokenStats
from learner.weights import full_shape
from rollout_workers.trajectory import Floats

Reference: TypeAlias = Callable[[MicroBatch], Tensor]
"""[M] log-probabilities of the reference policy."""


def without_gradient(engine: Any) -> Reference:
    """A frozen model as reference."""

    def logprobs(batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return engine(batch)[0]

    return logprobs


def without_adapters(engine: Any) -> Reference:
    """The base of a policy with adapters as reference: no second model in memory."""

    def logprobs(batch: MicroBatch) -> Tensor:
        with lora.switched_off(engine.module):
            return engine(batch)[0]

    return logprobs


@dataclass(frozen=True)
class Pass:
    """One forward over some items: micro-batches in lockstep over the ranks."""

    steps: Steps
    rows: list[Row]
    images: StepImages


@dataclass(frozen=True)
class Outcome:
    """One optimizer step. Where the loss or the gradient was not finite nothing was applied."""

    loss: float
    policy_loss: float
    grad_norm: float
    applied: bool
    micro_steps: int
    tokens: int
    computed_tokens: int


class Updater:
    """Every method is collective: all ranks are called with the same arguments."""

    def __init__(
        self,
        engine: Any,
        reference: Reference | None,
        processor: Any,
        config: LearnerConfig,
        rank: int,
        seed: int,
    ) -> None:
        """`engine`: DeepSpeed's, of a `Policy`; `processor`: the image processor of the model folder."""
        self.skipped_in_a_row = 0
        self._engine = engine
        self._reference = reference
        self._processor = processor
        self._config = config
        self._rank = rank
        self._seed = seed
        model = engine.module.model
        self._vision = VisionTokens(
            model.config.image_token_id,
            model.config.vision_start_token_id,
            model.config.vision_end_token_id,
        )
        # A patch costs the vision tower about what a token costs the language model, in the ratio of their parameters.
        self._patch_cost = _parameters(model.model.visual) / _parameters(model.model.language_model)

    def update(self, items: list[TrainItem], loss: str) -> dict[str, float]:
        """See Learner.update."""
        started = time.monotonic()
        config = self._config
        lr = self._engine.get_lr()[0]
        rounds = [items]
        old: dict[int, Floats] = {}
        if loss == "policy":
            rounds = list(
                deal(
                    items,
                    config.epochs,
                    config.mini_batches,
                    [self._seed, self._engine.global_steps],
                )
            )
            if config.correction != "none" and len(rounds) > 1:
                old = self._gathered_logprobs(items)
        stats = TokenStats()
        outcomes = []
        for number, part in enumerate(rounds):
            outcomes.append(
                self._step(part, old, loss, stats, first=number == 0, only=len(rounds) == 1)
            )
            self.skipped_in_a_row = 0 if outcomes[-1].applied else self.skipped_in_a_row + 1
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
            "seconds": time.monotonic() - started,
        } | stats.summary()

    def logprobs(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """This rank's share: (index of the item, [R] log-probabilities of its masked tokens, 0 elsewhere)."""
        return self._of_tokens(items, 0)

    def entropies(self, items: list[TrainItem]) -> list[tuple[int, Floats]]:
        """This rank's share: (index of the item, [R] nats at its masked tokens, 0 elsewhere), of the distributions they are drawn from."""
        return self._of_tokens(items, 1)

    def _of_tokens(self, items: list[TrainItem], output: int) -> list[tuple[int, Floats]]:
        """One output of the policy, by item."""
        run = self._plan(items)
        out: list[tuple[int, Floats]] = []
        for step in run.steps:
            batch = self._micro_batch(run, step)
            with torch.no_grad():
                flat, owner = self._engine(batch)[output].cpu().numpy(), batch.items.cpu().numpy()
            for b, i in enumerate(step[self._rank]):
                whole = np.zeros(len(items[i].mask), np.float32)
                whole[items[i].mask] = flat[owner == b]
                out.append((i, whole))
        return out

    def _step(
        self,
        items: list[TrainItem],
        old: dict[int, Floats],
        loss: str,
        stats: TokenStats,
        first: bool,
        only: bool,
    ) -> Outcome:
        """One optimizer step on the sum of the items' losses. `first`: the policy is still the one that sampled; `only`: and stays so."""
        engine, config = self._engine, self._config
        length = OBJECTIVES[config.objective].length if loss == "policy" else "own"
        run = self._plan(
            items,
            {"own": None, "mean": _mean_length(items), "constant": float(config.loss_length)}[
                length
            ],
            old,
        )
        sums = torch.zeros(3, dtype=torch.float64)
        for s, step in enumerate(run.steps):
            # gradient_accumulation_steps is 1: the boundary is ours, so the number of micro-batches may change each step.
            engine.set_gradient_accumulation_boundary(s == len(run.steps) - 1)
            batch = self._micro_batch(run, step)
            if loss == "nll":
                logprobs, entropies = engine(batch)
                total = nll_loss(logprobs, batch.weights)
                stats.add(entropy=entropies)
                sums += _scalars(total, total, batch.input_ids.numel())
            else:
                total, policy = self._policy_loss(batch, stats, first, only)
                sums += _scalars(total, policy, batch.input_ids.numel())
            # DeepSpeed averages gradients over ranks; the loss is a sum over items wherever they lie.
            engine.backward(total * config.ranks)
        sums = sums.to(engine.device)
        dist.all_reduce(sums)
        norm, applied = float("nan"), False
        if bool(torch.isfinite(sums[0])):
            engine.step()  # skips by itself where the gradient is not finite
            norm, applied = float(engine.get_global_grad_norm()), engine.was_step_applied()
        else:
            engine.optimizer.zero_grad()
        tokens = sum(len(row.ids) for row in run.rows)
        return Outcome(
            float(sums[0]), float(sums[1]), norm, applied, len(run.steps), tokens, int(sums[2])
        )

    def _policy_loss(
        self, batch: MicroBatch, stats: TokenStats, first: bool, only: bool
    ) -> tuple[Tensor, Tensor]:
        config = self._config
        reference = self._reference(batch) if self._reference is not None else None
        logprobs, entropies = self._engine(batch)
        now = logprobs.detach()
        old = now if only and config.correction != "none" else batch.old_logprobs
        correction = gap_correction(
            old,
            batch.engine_logprobs,
            batch.items,
            config.correction,
            config.correction_level,
            config.correction_cap,
        )
        out = policy_loss(
            logprobs,
            old,
            batch.advantages,
            batch.weights,
            batch.items,
            reference,
            correction,
            config,
        )
        stats.add(ratio=out.ratio, kl=out.kl, clipped=out.clipped, entropy=entropies)
        if config.correction != "none":
            stats.add(correction=out.correction)
        if first:
            stats.add(gap=now - batch.engine_logprobs)
        return out.loss, out.policy_loss

    def _plan(
        self,
        items: list[TrainItem],
        length: float | None = None,
        old: dict[int, Floats] | None = None,
    ) -> Pass:
        """The same plan on every rank; each then builds its own micro-batches only."""
        config = self._config
        images = StepImages(self._processor)
        rows = [
            make_row(
                item,
                images.add(item),
                images,
                self._vision.image_pad,
                length,
                (old or {}).get(id(item.trajectory)),
            )
            for item in items
        ]
        questions = [item.question.id for item in items]
        cost = lambda key: self._patch_cost * images.patches(key)  # noqa: E731
        return Pass(
            plan_rows(
                rows, questions, cost, config.ranks, config.micro_batch_tokens, config.layout
            ),
            rows,
            images,
        )

    def _micro_batch(self, run: Pass, step: list[list[int]]) -> MicroBatch:
        """This rank's micro-batch."""
        rows = [run.rows[i] for i in step[self._rank]]
        return collate(rows, run.images, self._vision, self._config.layout).to(self._engine.device)

    def _gathered_logprobs(self, items: list[TrainItem]) -> dict[int, Floats]:
        """[R] of every item, by the id of its trajectory, on every rank."""
        shares: list[Any] = [None] * self._config.ranks
        dist.all_gather_object(shares, self.logprobs(items))
        return {id(items[i].trajectory): values for share in shares for i, values in share}


def deal(
    items: Sequence[TrainItem], epochs: int, mini_batches: int, seed: Sequence[int]
) -> Iterator[list[TrainItem]]:
    """The items of each optimizer step: every epoch deals the questions out at random, all items of a question together.

    Weights grow by questions / questions of the mini-batch, so that each step is a mean over its own questions.
    """
    questions = list(dict.fromkeys(item.question.id for item in items))
    parts = min(mini_batches, len(questions))
    for epoch in range(epochs):
        order = (
            np.random.default_rng([*seed, epoch]).permutation(len(questions))
            if parts > 1
            else np.arange(len(questions))
        )
        for chosen in np.array_split(order, parts):
            names = {questions[i] for i in chosen}
            scale = len(questions) / len(names)
            yield [
                replace(item, weight=item.weight * scale)
                for item in items
                if item.question.id in names
            ]


def _mean_length(items: Sequence[TrainItem]) -> float:
    return float(np.mean([item.mask.sum() for item in items]))


def _parameters(model: torch.nn.Module) -> int:
    """Parameters before ZeRO-3 partitioned them."""
    return sum(math.prod(full_shape(parameter)) for parameter in model.parameters())


def _scalars(*values: Tensor | int) -> Tensor:
    return torch.tensor(
        [float(v.detach()) if isinstance(v, Tensor) else float(v) for v in values],
        dtype=torch.float64,
    )
