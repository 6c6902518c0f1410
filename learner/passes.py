"""Passes over train items: rows, and the micro-batches in which the ranks go through them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from learner.ahead import made_ahead
from learner.batch import MicroBatch, collate
from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.images import ImageKey, ImageStore, StepImages
from learner.plan import Steps, plan_rows
from learner.rows import Row, VisionTokens, make_row
from learner.weights import full_shape
from rollout_workers.families import architecture_of
from rollout_workers.images import ToolImage
from rollout_workers.trajectory import Floats


@dataclass(frozen=True)
class Pass:
    """One forward over some items: micro-batches in lockstep over the ranks."""

    steps: Steps
    rows: list[Row]
    images: StepImages

    @property
    def tokens(self) -> int:
        """Tokens of all rows, each by itself, images expanded."""
        return sum(len(row.ids) for row in self.rows)


class Passes:
    """Plan passes and build this rank's micro-batches."""

    def __init__(
        self, model: nn.Module, processor: Any, config: LearnerConfig, rank: int, device: Any
    ) -> None:
        """Read what the layout needs of the model.

        Args:
            model: the policy's; ZeRO-3 may have partitioned it.
            processor: the image processor of the model folder.
            config: its layout, `micro_batch_tokens` and ranks.
            rank: this rank.
            device: where this rank computes.
        """
        self._processor = processor
        self._config = config
        self._rank = rank
        self._device = device
        self._vision = VisionTokens(
            model.config.image_token_id,
            model.config.vision_start_token_id,
            model.config.vision_end_token_id,
            architecture_of(model.config.to_dict()).rotary_positions,
        )
        # A patch costs the vision tower about what a token costs the language model, in the ratio
        # of their parameters.
        self._patch_cost = _parameters(model.model.visual) / _parameters(model.model.language_model)

    def images(self, *, passes: int = 1) -> ImageStore:
        """Return the store of images of an update that makes so many passes."""
        return ImageStore(self._processor, keep=passes > 1)

    def plan(
        self,
        items: Sequence[TrainItem],
        store: ImageStore,
        divisor: float | None = None,
        old: Sequence[Floats] | None = None,
    ) -> Pass:
        """Plan one pass, the same on every rank; each then builds its own micro-batches only.

        Every rank makes all rows and the whole plan for itself. That takes 0.1 ms a row of 740
        tokens, 1 % of a step of 60 s for 1,024 questions x 8: too little to send plans around.

        Args:
            items: what to compute; each has at least one trained token.
            store: of the update's images.
            divisor: tokens by which an item's sum is divided; None: its own trained tokens.
            old: for each item the log-probabilities that the ratio compares with, shape [R];
                None: the engine's.
        """
        store.hash(_observed(items))
        images = StepImages(store)
        image_pad = self._vision.image_pad
        rows = []
        for i, item in enumerate(items):
            own_old = old[i] if old is not None else None
            row = make_row(item, images, image_pad, divisor=divisor, old_logprobs=own_old)
            rows.append(row)

        def image_cost(key: ImageKey) -> float:
            return self._patch_cost * images.patches(key)

        questions = [item.question.id for item in items]
        return Pass(plan_rows(rows, questions, image_cost, self._config), rows, images)

    def mine(self, step: list[list[int]]) -> list[int]:
        """Return the indices of the items of this rank's micro-batch."""
        return step[self._rank]

    def micro_batches(self, pass_: Pass) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a pass, one for each of its steps.

        A thread builds the next one while one is in use: a photograph of 12 megapixels takes 0.2 s.
        """
        rows = [[pass_.rows[i] for i in self.mine(step)] for step in pass_.steps]

        def build(number: int) -> MicroBatch:
            batch = collate(rows[number], pass_.images, self._vision, self._config.layout)
            needed = _shown(itertools.chain.from_iterable(rows[number + 1 :]))
            pass_.images.store.forget(_shown(rows[number]) - needed)
            return batch

        for batch in made_ahead(build, len(rows)):
            yield batch.to(self._device)


def _observed(items: Sequence[TrainItem]) -> list[ToolImage]:
    observed: list[ToolImage] = []
    for item in items:
        observed += item.trajectory.images
    return observed


def _shown(rows: Iterable[Row]) -> set[ImageKey]:
    shown: set[ImageKey] = set()
    for row in rows:
        shown.update(row.images)
    return shown


def _parameters(model: torch.nn.Module) -> int:
    """Count parameters as they were before ZeRO-3 partitioned them."""
    return sum(math.prod(full_shape(parameter)) for parameter in model.parameters())
