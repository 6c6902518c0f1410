"""A loss of your own: one function of three tensors [M], one entry for each trained token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def tapered(logprobs: Tensor, ratio: Tensor, advantages: Tensor) -> Tensor:
    """REINFORCE whose weight tapers off as the policy moves away from the one that sampled."""
    distance = (ratio.detach() - 1).abs()
    return (-distance).exp() * advantages * logprobs
