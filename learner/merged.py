"""Attention of a long node below a prefix: two kernels without a mask, merged exactly.

A node of n tokens behind p attends to all of the prefix, and to itself up to its own place. One
masked call computes all n * (p + n) scores. The two parts on their own, the prefix in full and the
node causally, compute n * p + n * n / 2. If o1, o2 are the outputs of the parts, and l1, l2 the
logarithms of their softmax denominators, then of both together they are

    l = log(exp(l1) + exp(l2))    o = exp(l1 - l) * o1 + exp(l2 - l) * o2

Backwards nothing is taken apart: the kernel of a part computes its scores again and divides by the
denominator that it is given. Given that of both parts, and their joint output, it returns just its
part's share of the gradients.

torch gives the denominators on a CPU by operators that are not public. If they are not the ones
that we know, `AVAILABLE` is False and `learner.attention` masks instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

KNOWN = (
    "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, "
    "float dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> "
    "(Tensor output, Tensor logsumexp)",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward(Tensor grad_out, Tensor query, "
    "Tensor key, Tensor value, Tensor out, Tensor logsumexp, float dropout_p, bool is_causal, *, "
    "Tensor? attn_mask=None, float? scale=None) -> (Tensor grad_query, Tensor grad_key, "
    "Tensor grad_value)",
)
"""Of the torch that constraints.txt names."""


def _operator(schema: str) -> Any:
    """Return torch's operator of a schema; None if it has another one, or is not there."""
    name = schema.removeprefix("aten::").partition("(")[0]
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, "default", None)
    return found if found is not None and str(found._schema) == schema else None


_forward, _backward = map(_operator, KNOWN)
AVAILABLE = _forward is not None and _backward is not None


def attend_below(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Attend from a node to its prefix and to itself.

    Args:
        query: of the node, shape [B, H, n, D].
        key: of the prefix and the node, shape [B, H, p + n, D].
        value: shape [B, H, p + n, D].
        scale: of the scores; None: 1 / sqrt(D).

    Returns:
        The output, shape [B, H, n, D].
    """
    out: Tensor = _Merged.apply(query, key, value, scale)
    return out


class _Merged(torch.autograd.Function):
    """Two parts, merged. Between them all is at least float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        above = key.shape[2] - query.shape[2]
        prefix, log_prefix = _forward(query, key[:, :, :above], value[:, :, :above], scale=scale)
        own, log_own = _forward(
            query, key[:, :, above:], value[:, :, above:], is_causal=True, scale=scale
        )
        share = torch.sigmoid(log_prefix - log_own).unsqueeze(-1)
        joint = torch.lerp(own.to(share.dtype), prefix.to(share.dtype), share).to(query.dtype)
        ctx.save_for_backward(query, key, value, joint, torch.logaddexp(log_prefix, log_own))
        ctx.scale = scale
        return joint

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, joint, log_joint = ctx.saved_tensors
        above = key.shape[2] - query.shape[2]
        part = partial(_backward, grads[0], query, dropout_p=0.0, scale=ctx.scale)
        given = {"out": joint, "logsumexp": log_joint}
        by_query, *of_prefix = part(
            key[:, :, :above], value[:, :, :above], is_causal=False, **given
        )
        own_by_query, *of_own = part(
            key[:, :, above:], value[:, :, above:], is_causal=True, **given
        )
        # A sum of two, rounded once.
        exact = torch.promote_types(query.dtype, torch.float32)
        by_query = (by_query.to(exact) + own_by_query).to(query.dtype)
        by_key, by_value = (torch.cat(parts, 2) for parts in zip(of_prefix, of_own, strict=True))
        return by_query, by_key, by_value, None
