"""Numbers of an update over all trained tokens of all ranks: means, extremes, percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


class TokenStats:
    """Collects per-token values; `summary` is collective."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, **values: Tensor) -> None:
        """Values [M] of one micro-batch: ratio, kl, clipped, entropy (nats), gap (learner's - engine's logprob), correction."""
        for name, value in values.items():
            self._parts.setdefault(name, []).append(value.detach().float().cpu().numpy())

    def summary(self) -> dict[str, float]:
        """The metrics of `Learner.update` that are taken over tokens, the same on every rank."""
        mine = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
        whole = {
            name: np.concatenate([share[name] for share in shares]).astype(np.float64)
            for name in mine
        }
        return summarize(whole)


def summarize(values: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Metrics of per-token arrays; a name that is not there, or has no token, adds none."""
    out: dict[str, float] = {}
    for name, x in values.items():
        if not len(x):
            continue
        if name == "ratio":
            out |= {"ratio_mean": x.mean(), "ratio_max": x.max()} | _percentiles(name, x)
        elif name == "entropy":
            out |= {"entropy_mean": x.mean()} | _percentiles(name, x)
        elif name == "gap":
            # k3 over the engine's own samples: KL(engine || learner), never negative (schulman.dev/blog/kl-approx).
            out |= {
                "logprob_gap_mean": np.abs(x).mean(),
                "logprob_gap_max": np.abs(x).max(),
                "engine_kl": (np.expm1(x) - x).mean(),
            }
        elif name == "clipped":
            out["clip_fraction"] = x.mean()
        elif name == "correction":
            out |= {"correction_mean": x.mean(), "correction_min": x.min()}
        else:
            out[name] = x.mean()
    return {name: float(value) for name, value in out.items()}


def _percentiles(name: str, x: NDArray[np.float64]) -> dict[str, Any]:
    low, middle, high = np.quantile(x, [0.01, 0.5, 0.99])
    return {f"{name}_p01": low, f"{name}_p50": middle, f"{name}_p99": high}
