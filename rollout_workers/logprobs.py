"""Read vLLM's log-probabilities, and estimate entropies from the largest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rollout_workers.trajectory import Floats

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs


def logprob_table(flat: FlatLogprobs, top: int) -> Floats:
    """Read the log-probabilities of T sampled tokens.

    vLLM puts the sampled token first at each position, and once more among the largest if it is
    one of them. When vLLM merges outputs because their consumer lags, it keeps the token only
    once, so such a position is one shorter.

    Args:
        flat: what vLLM returns for T tokens.
        top: how many of the largest were asked for.

    Returns:
        Shape [T, 1 + top]: the sampled token's, then the `top` largest.
    """
    values = np.asarray(flat.logprobs)
    starts = np.asarray(flat.start_indices)
    ends = np.asarray(flat.end_indices)
    # The largest are the last `top` entries of a position, whether or not it is one shorter.
    places = np.concatenate([starts[:, None], ends[:, None] + np.arange(-top, 0)], axis=1)
    return values[places].astype(np.float32)


def entropies(top_logprobs: Floats) -> Floats:
    """Estimate entropies from below: the rest of the probability counts as one outcome.

    Args:
        top_logprobs: the k largest log-probabilities of each position, shape [T, k].

    Returns:
        Entropies in nats, shape [T].
    """
    p = np.exp(top_logprobs.astype(np.float64))
    # Rounding may leave nothing or less, and the logarithm of 0 does not exist.
    rest = np.clip(1 - p.sum(axis=1), 1e-12, 1)
    return (-(p * top_logprobs).sum(axis=1) - rest * np.log(rest)).astype(np.float32)
