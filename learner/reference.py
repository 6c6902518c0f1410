"""The reference policy of the KL term: a frozen model, or the policy without its adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from learner import lora
from learner.batch import MicroBatch

Reference: TypeAlias = Callable[[MicroBatch], Tensor]
"""Gives the reference policy's log-probabilities of a micro-batch's trained tokens, shape [M]."""


def without_gradient(engine: Any) -> Reference:
    """Return a frozen model, in DeepSpeed's engine, as reference."""

    def logprobs(batch: MicroBatch) -> Tensor:
        with torch.no_grad():
            return engine(batch)[0]

    return logprobs


def without_adapters(engine: Any) -> Reference:
    """Return the base of a policy with adapters as reference: no second model in memory."""

    def logprobs(batch: MicroBatch) -> Tensor:
        # The engine is the policy's own, so its weights are gathered as for the policy.
        with lora.switched_off(engine.module):
            return engine(batch)[0]

    return logprobs
