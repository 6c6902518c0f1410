"""How far the learner's probabilities are from the engine's, over a short run.

The measure is KL(engine || learner) on the sampled tokens.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from axpo.record.run import RunDirectory
from benchmarks.recorded import run_recipe
from benchmarks.result import Entry, at_most

STEPS = 20
TARGETS = {"bfloat16": ("engine_gap_kl_bf16", 0.015), "float32": ("engine_gap_kl_fp32", 1e-4)}
"""Entry and target of each type of numbers."""
SMALL = (
    f"steps={STEPS}",
    "questions_per_step=2",
    "rollout.n=4",
    "resampler.k=2",
    "task.held_out=4",
    "checkpoint_every=1000",
    "logging.groups_kept=0",
)


def measure() -> list[Entry]:
    """Return an entry for each type of numbers."""
    return [_measure(dtype) for dtype in TARGETS]


def _measure(dtype: str) -> Entry:
    types = (f"rollout.engine.dtype={dtype}", f"learner.dtype={dtype}")
    with tempfile.TemporaryDirectory() as root:
        rows = RunDirectory.open(run_recipe(Path(root), "gap", *SMALL, *types)).metrics()
    kls = [row["engine_kl"] for row in rows if row.get("engine_kl") is not None]
    gaps = [row["logprob_gap_max"] for row in rows if row.get("logprob_gap_max") is not None]
    name, target = TARGETS[dtype]
    detail = (
        f"largest of {len(kls)} steps' means over tokens (k3), weights updated each step; "
        f"largest |gap| of a token {max(gaps):.2g}"
    )
    return at_most(name, max(kls), target, "nats", detail)
