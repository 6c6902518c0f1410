"""Configuration of resampling. The defaults are the paper's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollout_workers.trajectory import ForkAt


class ResamplerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(
        4, ge=2, description="continuations of a selected prefix (K); one alone has no advantage"
    )
    budget_ratio: float = Field(
        0.25, ge=0, description="extra rollouts a batch, relative to its own"
    )
    fork_at: ForkAt = Field(
        "first_call",
        description="what a continuation keeps of its source: all up to the opening of its first tool call, or of any of its calls; "
        "ablations: nothing (prompt), or the thinking of a rollout without a tool, in questions where all of those failed (answer); "
        "rival: all up to a tool's result after which the entropy is higher than at the start, in any question (observation: ARPO)",
    )
    ranking: Literal["confidence", "entropy", "random"] = Field(
        "confidence",
        description="which prefixes first: least confident call, highest entropy, or by chance (ablation)",
    )
    schedule: Literal["batch", "streaming"] = Field(
        "streaming",
        description="when forks are chosen: while groups still come in, or when the whole batch is there (exactly the paper)",
    )
    success_above: float = Field(
        0.0,
        description="a rollout failed where its reward is not above this; for outcomes that are not only 0 and 1",
    )
    success_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="a rollout failed where its reward is not above this quantile of the last batches', the best reward seen left out; for "
        "outcomes whose scale is not known. Until two different ones were seen, and where None, success_above says",
    )
    target_recovery: float | None = Field(
        None,
        gt=0,
        le=1,
        description="recovery rate from which on the whole budget is spent; below it a share in proportion. None: always the whole budget",
    )
    target_cost_s: float | None = Field(
        None,
        gt=0,
        description="seconds of tools, `call_costs` included, that the K continuations of a prefix may take together; where those at "
        "a tool took more of late, a prefix at it counts for more than one of the budget, in proportion. None: whatever they take",
    )
    call_costs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="price of a call by the tool's name, in seconds: what it costs beside its latency",
    )
    min_distinct_calls: int = Field(
        1,
        ge=1,
        description="distinct tool calls among the K continuations below which a prefix is given up, before the calls are run",
    )
    deadline_s: float = Field(
        600.0,
        gt=0,
        description="seconds for the continuations of a prefix; what is not back by then is dropped",
    )

    @property
    def adapts(self) -> bool:
        """Whether the budget follows what came of earlier resamples."""
        return self.target_recovery is not None or self.target_cost_s is not None

    @model_validator(mode="after")
    def _consistent(self) -> ResamplerConfig:
        if self.fork_at == "observation" and self.ranking != "entropy":
            raise ValueError(
                f"resampler.ranking={self.ranking!r}: must be 'entropy' with resampler.fork_at='observation', which forks where it rose"
            )
        for name in ("success_above", "success_quantile"):
            if self.fork_at == "observation" and (value := getattr(self, name)):
                raise ValueError(
                    f"resampler.{name}={value}: resampler.fork_at='observation' forks whatever the outcomes; leave it out"
                )
        if self.call_costs and self.target_cost_s is None:
            raise ValueError("resampler.call_costs: means nothing without resampler.target_cost_s")
        if self.min_distinct_calls > self.k:
            raise ValueError(
                f"resampler.min_distinct_calls={self.min_distinct_calls}: at most resampler.k={self.k}"
            )
        if self.min_distinct_calls > 1 and self.fork_at not in ("first_call", "every_call"):
            raise ValueError(
                f"resampler.min_distinct_calls={self.min_distinct_calls}: continuations of resampler.fork_at={self.fork_at!r} "
                "need not begin with a call; leave it out"
            )
        return self
