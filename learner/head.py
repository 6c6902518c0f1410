"""Log-probabilities and entropies from hidden states, in chunks: no [tokens, vocabulary] tensor is ever whole.

With z = (h W^T + ban) / temperature the log-probability of target y is z_y - logsumexp(z), and its gradient by z is
onehot(y) - softmax(z). The backward pass computes z again chunk by chunk, so a chunk is all that is ever held. The head is
one module and one autograd function, so ZeRO-3 gathers its weight once each way, whatever the number of chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rollout_workers.trajectory import BAN_BIAS

CHUNK = (
    1 << 24
)  # logits of one chunk: 64 MB in float32, and about four times that while it is worked on


class Head(nn.Module):
    """The language model's head and the distribution that the engine samples from: bans first, then temperature."""

    def __init__(
        self, weight: nn.Parameter, banned: Sequence[int], temperature: float, chunk: int = CHUNK
    ) -> None:
        """`weight` [V, H], the model's own parameter; `banned`: token ids; `chunk`: logits held at a time."""
        super().__init__()
        self.weight = weight
        self.banned = list(banned)
        self.temperature = temperature
        self.chunk = chunk

    def forward(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[M, H], [M] -> [M] log-probabilities and [M] entropies in nats (without gradient), float32."""
        return _Logprobs.apply(
            hidden, self.weight, targets, self.banned, self.temperature, self.chunk
        )


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        banned: list[int],
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies, normalizers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part in _parts(len(targets), weight.shape[0], chunk):
            logits = _logits(hidden[part], weight, banned, temperature)
            normalizers[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - normalizers[part]
            logits -= normalizers[part, None]
            entropies[part] = -(logits.exp() * logits).sum(-1)
        # The parameter itself is kept, not a copy: by the backward pass ZeRO-3 has gathered its data again.
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.settings = banned, temperature, chunk
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        hidden, weight, targets, normalizers = ctx.saved_tensors
        banned, temperature, chunk = ctx.settings
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for part in _parts(len(targets), weight.shape[0], chunk):
            by_logits = _logits(hidden[part], weight, banned, temperature)
            by_logits -= normalizers[part, None]
            by_logits.exp_().neg_()
            by_logits.scatter_add_(
                -1, targets[part, None], torch.ones_like(targets[part, None], dtype=by_logits.dtype)
            )
            by_logits *= grad[part, None] / temperature
            scaled = by_logits.to(weight.dtype)
            by_hidden[part] = scaled @ weight
            if by_weight is not None:
                by_weight.addmm_(scaled.T, hidden[part])
        return by_hidden, by_weight, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, banned: list[int], temperature: float) -> Tensor:
    logits = (hidden @ weight.T).float()
    logits[:, banned] += BAN_BIAS
    return logits.div_(temperature)


def _parts(tokens: int, vocabulary: int, chunk: int) -> Iterator[slice]:
    size = max(1, chunk // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))
