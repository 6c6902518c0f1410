"""What every rollout worker of a run is told at its start, and what is asked of it later."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollout_workers.config import RolloutConfig
from rollout_workers.faults import FaultPlan
from rollout_workers.image_rule import ImagesConfig
from rollout_workers.interfaces import Tools, Verify


@dataclass(frozen=True)
class WorkerSettings:
    """What all workers of a run share; the pool sends it to each."""

    model: str  # folder of the model
    config: RolloutConfig
    tools: Tools
    verify: Verify
    run_seed: int
    # How large the model sees images.
    images: ImagesConfig = field(default_factory=ImagesConfig)
    system: str | None = None  # the system message of every prompt
    want_entropies: bool = False  # keep the entropy of every sampled token
    # Of the adapters that the learner sends alone; None: it sends whole weights.
    lora_rank: int | None = None
    deterministic: bool = False  # the engine's results do not depend on what it computes beside
    faults: FaultPlan = field(default_factory=FaultPlan)  # what breaks on purpose, in tests


@dataclass(frozen=True)
class ForkRequest:
    """Which prefix to continue, and how often."""

    rollout: int  # the source: its index in its group
    prefix_tokens: int  # the first response tokens of the source, which are kept
    k: int  # continuations
    min_distinct_calls: int = 1  # with fewer distinct calls among them, none is run
