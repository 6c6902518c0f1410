"""Log-probabilities and entropies from hidden states, in chunks.

With z = (h W^T + ban) / temperature the log-probability of target y is z_y - logsumexp(z), and its
gradient by z is onehot(y) - softmax(z). No tensor of [tokens, vocabulary] is ever whole: the
backward pass computes z again chunk by chunk, so a chunk is all that is ever held. The head is one
module and one autograd function, so ZeRO-3 gathers its weight once each way, whatever the number of
chunks.

In bfloat16 the products are bfloat16, their sums are float32 and stay so: logits, and the weight's
gradient over all chunks. A logit of 20 rounded to bfloat16 would be up to 0.06 off, and 180 rounded
sums of a gradient 2.5 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.config import HEAD_CHUNK, HEAD_CHUNK_CUDA
from rollout_workers.special_tokens import BAN_BIAS


@dataclass(frozen=True)
class Sampling:
    """How the engine draws from the logits."""

    banned: list[int]
    """Ids of tokens that must not be sampled."""
    temperature: float
    chunk: int | None
    """Logits held at a time; None: as many as suit the device."""


class Head(nn.Module):
    """The language model's head, and the distribution that the engine samples from.

    Bans come first, then temperature.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        banned: Sequence[int],
        temperature: float,
        chunk: int | None = None,
    ) -> None:
        """Share the model's own weight.

        Args:
            weight: the model's own parameter, shape [V, H].
            banned: ids of tokens that must not be sampled.
            temperature: of sampling.
            chunk: logits held at a time; None: as many as suit the device.
        """
        super().__init__()
        self.weight = weight
        self.sampling = Sampling(list(banned), temperature, chunk)

    def forward(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what the engine would draw `targets` with.

        Args:
            hidden: hidden states, shape [M, H].
            targets: token ids, shape [M].

        Returns:
            Log-probabilities, shape [M], and entropies in nats, shape [M], both float32. Only the
            former carry a gradient.
        """
        return _Logprobs.apply(hidden, self.weight, targets, self.sampling)


class _Logprobs(torch.autograd.Function):
    """The log-probabilities with a backward pass that computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        # By chunks into whole vectors of tokens: only the logits are large.
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        normalizers = torch.empty_like(logprobs)
        head = _operand(weight)
        for part in _parts(len(targets), weight, sampling):
            z = logits(hidden[part], head, sampling)
            normalizers[part] = z.logsumexp(-1)
            logprobs[part] = z.gather(-1, targets[part, None])[:, 0] - normalizers[part]
            z -= normalizers[part, None]
            entropies[part] = -(z.exp() * z).sum(-1)
        # The parameter itself is kept, not a copy: by the backward pass ZeRO-3 has gathered its
        # data again.
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.sampling = sampling
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        hidden, weight, targets, normalizers = ctx.saved_tensors
        sampling: Sampling = ctx.sampling
        by_hidden = torch.empty_like(hidden)
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight, dtype=torch.float32)
        head = _operand(weight)
        for part in _parts(len(targets), weight, sampling):
            # -softmax(z), then + onehot(y)
            by_logits = logits(hidden[part], head, sampling)
            by_logits -= normalizers[part, None]
            by_logits.exp_().neg_()
            chosen = targets[part, None]
            by_logits.scatter_add_(-1, chosen, torch.ones_like(chosen, dtype=by_logits.dtype))
            by_logits *= grad[part, None] / sampling.temperature
            scaled = by_logits.to(weight.dtype)
            by_hidden[part] = scaled @ weight
            if by_weight is not None:
                _add_product(by_weight, scaled.T, hidden[part])
        if by_weight is not None:
            by_weight = by_weight.to(weight.dtype)
        return by_hidden, by_weight, None, None


def logits(hidden: Tensor, weight: Tensor, sampling: Sampling) -> Tensor:
    """Return the float32 logits z of the distributions that the engine samples from.

    Args:
        hidden: hidden states, shape [M, H].
        weight: the head's, shape [V, H].
        sampling: how the engine draws.

    Returns:
        z = (h W^T + ban) / temperature, shape [M, V].
    """
    z = _product(hidden, weight.T)
    z[:, sampling.banned] += BAN_BIAS
    return z.div_(sampling.temperature)


def _operand(weight: Tensor) -> Tensor:
    """Return a weight as `_product` takes it."""
    # The CPU has no product of bfloat16 with a float32 result, so the weight is copied once, not
    # once a chunk.
    return weight if weight.is_cuda else weight.float()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, without rounding its sums to the type of a and b."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a @ b to a float32 total, without rounding its sums to the type of a and b."""
    if a.is_cuda and a.dtype != torch.float32:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total.addmm_(a.float(), b.float())


def _parts(tokens: int, weight: Tensor, sampling: Sampling) -> Iterator[slice]:
    """Yield slices of the token axis whose logits fit a chunk; one token at least."""
    chunk = sampling.chunk
    if chunk is None:
        chunk = HEAD_CHUNK_CUDA if weight.is_cuda else HEAD_CHUNK
    size = max(1, chunk // weight.shape[0])
    for start in range(0, tokens, size):
        yield slice(start, start + size)
