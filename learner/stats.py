"""Numbers of an update over all trained tokens of all ranks: means, extremes, percentiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

Values: TypeAlias = NDArray[np.float64]
"""One number for each trained token, shape [M]."""


class TokenStats:
    """Collect values of tokens, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, **values: Tensor) -> None:
        """Add the values of one micro-batch, each of shape [M].

        Args:
            values: ratio, kl, clipped, entropy (nats), gap (the learner's log-probability - the
                engine's) or correction.
        """
        for name, value in values.items():
            self._parts.setdefault(name, []).append(value.detach().float().cpu().numpy())

    def summary(self) -> dict[str, float]:
        """Return the metrics over the tokens of all ranks, the same on every rank. Collective."""
        mine = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
        everyone = {}
        for name in mine:
            joined = np.concatenate([share[name] for share in shares])
            # Means over many tokens lose digits in float32.
            everyone[name] = joined.astype(np.float64)
        return summarize(everyone)


def summarize(values: dict[str, Values]) -> dict[str, float]:
    """Return the metrics of per-token values.

    A name that is not there, or has no token, adds none.
    """
    out: dict[str, float] = {}
    for name, x in values.items():
        if len(x):
            metrics = _METRICS[name](x) if name in _METRICS else {name: x.mean()}
            out |= metrics
    return {name: float(value) for name, value in out.items()}


def _ratio(x: Values) -> dict[str, Any]:
    return {"ratio_mean": x.mean(), "ratio_max": x.max(), **_percentiles("ratio", x)}


def _entropy(x: Values) -> dict[str, Any]:
    return {"entropy_mean": x.mean(), **_percentiles("entropy", x)}


def _gap(x: Values) -> dict[str, Any]:
    return {
        "logprob_gap_mean": np.abs(x).mean(),
        "logprob_gap_max": np.abs(x).max(),
        # k3 over the engine's own samples: KL(engine || learner), never negative
        # (schulman.dev/blog/kl-approx).
        "engine_kl": (np.expm1(x) - x).mean(),
    }


def _clipped(x: Values) -> dict[str, Any]:
    return {"clip_fraction": x.mean()}


def _correction(x: Values) -> dict[str, Any]:
    return {"correction_mean": x.mean(), "correction_min": x.min()}


_METRICS: dict[str, Callable[[Values], dict[str, Any]]] = {
    "ratio": _ratio,
    "entropy": _entropy,
    "gap": _gap,
    "clipped": _clipped,
    "correction": _correction,
}


def _percentiles(name: str, x: Values) -> dict[str, Any]:
    low, middle, high = np.quantile(x, [0.01, 0.5, 0.99])
    return {f"{name}_p01": low, f"{name}_p50": middle, f"{name}_p99": high}
