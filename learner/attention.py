"""Attention over a tree of sequences, as an attention implementation of Hugging Face's models.

On CPU there is one SDPA call a node of the tree (`learner.tree`): its queries against the keys on
the way from the root. A dense mask over eight rollouts of 60 tokens behind a prompt of 250 would
compute 2.5 times as many scores. Of a long node, half of the scores of such a call are masked, so
its prefix and the node itself are computed apart (`learner.merged`). On GPU it is FlexAttention,
which skips masked blocks. Without a tree (padded rows) it is Hugging Face's plain causal SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from learner import merged
from learner.tree import Tree

NAME = "axpo_tree"
LONG = 256
"""Tokens from which a node below a prefix is computed in two parts.

Forward and backward of the parts took this share of a masked call's time (float32, behind a prefix
of 256 tokens): 1.1 at 128 tokens, 0.97 at 256, 0.7 at 1,024 and 0.45 at 3,840.
"""
GRAPHS = 64
"""FlexAttention is compiled at most so often. Trees of any length need 6 graphs, torch allows 8."""


def register() -> None:
    """Make `attn_implementation="axpo_tree"` known to transformers; idempotent."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    if torch.cuda.is_available():
        limit_graphs()


def limit_graphs() -> None:
    """Let torch compile FlexAttention `GRAPHS` times, and raise if that does not suffice.

    Otherwise torch goes on without a compiled kernel, and without a word: the scores of all pairs
    of tokens are then held in float32, 64 GiB a layer at 32,768 tokens and 16 heads.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = GRAPHS
    dynamo.fail_on_recompile_limit_hit = True


def tree_attention(  # noqa: PLR0913  (the signature is that of transformers' attention functions)
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
    """Attend as the tree says.

    Args:
        module: the attention layer.
        query: shape [B, H, T, D]; with a tree, B is 1 and T its flat axis.
        key: shape [B, H_kv, T, D].
        value: shape [B, H_kv, T, D].
        attention_mask: not used; the tree is the mask.
        scaling: of the scores; None: 1 / sqrt(D).
        tree: None: plainly causal rows.
        block_mask: the tree as FlexAttention's mask; None: compute node by node with SDPA.
        kwargs: passed on to transformers' functions.

    Returns:
        The output, shape [B, T, H, D], and None for the attention weights.
    """
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is None:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    if block_mask is not None:
        return flex_attention_forward(
            module, query, key, value, block_mask, scaling=scaling, **kwargs
        )
    return _node_by_node(query, key, value, scaling, tree), None


def _node_by_node(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, tree: Tree
) -> Tensor:
    """Return the output of a computation for each node, shape [1, T, H, D]."""
    queries_per_key = query.shape[1] // key.shape[1]
    lengths = [stop - start for start, stop in tree.spans]
    queries = query.split(lengths, 2)
    # At least float32 until they are joined: the gradient of a shared node's keys is a sum over all
    # nodes below it.
    exact = torch.promote_types(key.dtype, torch.float32)
    keys = key.to(exact).split(lengths, 2)
    values = value.to(exact).split(lengths, 2)
    out = []
    for node, path in enumerate(tree.paths):
        # Several query heads share one key head; SDPA wants a key head for each.
        k = torch.cat([keys[i] for i in path], 2).to(key.dtype)
        v = torch.cat([values[i] for i in path], 2).to(value.dtype)
        k = k.repeat_interleave(queries_per_key, 1)
        v = v.repeat_interleave(queries_per_key, 1)
        out.append(_of_node(queries[node], k, v, scaling))
    return torch.cat(out, 2).transpose(1, 2).contiguous()


def _of_node(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Return the output of a node: every query sees the whole way down to its own place.

    Args:
        query: of the node, shape [1, H, n, D].
        key: of the way down, the node included, shape [1, H, p + n, D].
        value: shape [1, H, p + n, D].
        scaling: of the scores.
    """
    tokens = query.shape[2]
    above = key.shape[2] - tokens
    if above == 0:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    if tokens >= LONG and merged.AVAILABLE:
        return merged.attend_below(query, key, value, scaling)
    square = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=key.device)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=square.tril(above), scale=scaling
    )
