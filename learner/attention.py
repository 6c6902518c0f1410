"""Attention over a tree of sequences (`learner.tree`), as an attention implementation of Hugging Face's models.

On CPU one SDPA call a node: its queries against the keys on the way from the root. That computes no masked score, where a
dense mask over eight rollouts of 60 tokens behind a prompt of 250 would compute 2.5 times as many. On GPU FlexAttention,
which skips masked blocks. Without a tree (padded rows) it is Hugging Face's plain causal SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.tree import Tree

NAME = "axpo_tree"


def register() -> None:
    """Make `attn_implementation="axpo_tree"` known to transformers; idempotent."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    tree: Tree | None = None,
    block_mask: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """query [B, H, T, D], key and value [B, H_kv, T, D] -> [B, T, H, D]. With `tree` B is 1 and T its flat axis."""
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    if block_mask is not None:
        return flex_attention_forward(
            module, query, key, value, block_mask, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    lengths = [stop - start for start, stop in tree.spans]
    queries, keys, values = query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2)
    out = []
    for node, path in enumerate(tree.paths):
        k, v = torch.cat([keys[i] for i in path], 2), torch.cat([values[i] for i in path], 2)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        above = k.shape[2] - lengths[node]
        # A root is plainly causal; below it every query sees the whole way down and the node itself up to its own place.
        mask = (
            torch.ones(lengths[node], k.shape[2], dtype=torch.bool, device=k.device).tril(above)
            if above
            else None
        )
        out.append(
            F.scaled_dot_product_attention(
                queries[node], k, v, attn_mask=mask, scale=scaling, is_causal=mask is None
            )
        )
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None
