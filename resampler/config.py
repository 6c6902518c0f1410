"""Configuration of resampling. The defaults are the paper's, except for the schedule."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo.registry import Registered
from resampler.budgets import Budget, PaperBudget
from resampler.places import FirstCall, ForkPlace
from resampler.rankings import Confidence, Ranking
from resampler.schedules import Schedule, Streaming
from resampler.triggers import AllWrong, Trigger


class ResamplerConfig(BaseModel):
    """Which prefixes are forked, how many, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int = Field(
        4, ge=2, description="continuations of a selected prefix (K); one alone has no advantage"
    )
    budget: Annotated[Budget, Registered()] = Field(
        PaperBudget(), description="how many prefixes a batch may fork"
    )
    fork_at: Annotated[ForkPlace, Registered()] = Field(
        FirstCall(), description="what a continuation keeps of its source"
    )
    ranking: Annotated[Ranking, Registered()] = Field(
        Confidence(), description="which prefixes come first"
    )
    trigger: Annotated[Trigger, Registered()] = Field(
        AllWrong(), description="up to which reward a rollout failed"
    )
    schedule: Annotated[Schedule, Registered()] = Field(
        Streaming(), description="when forks are chosen"
    )
    min_distinct_calls: int = Field(
        1,
        ge=1,
        description="distinct tool calls among the K continuations below which a prefix is given "
        "up, before the calls are run",
    )
    deadline_s: float = Field(
        600.0,
        gt=0,
        description="seconds for the continuations of a prefix; what is not back by then is "
        "dropped",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ResamplerConfig:
        self._check_fork_place()
        self._check_distinct_calls()
        return self

    def _check_fork_place(self) -> None:
        place = self.fork_at
        # ARPO forks where the entropy rose, so only that rise can rank its places.
        if place.ranking is not None and self.ranking.name != place.ranking:
            raise ValueError(
                f"resampler.ranking={self.ranking.name!r}: must be {place.ranking!r} with "
                f"resampler.fork_at={place.name!r}"
            )
        if not place.needs_trigger and self.trigger != AllWrong():
            raise ValueError(
                f"resampler.trigger={self.trigger.spec()}: resampler.fork_at={place.name!r} forks "
                "whatever the outcomes; leave it out"
            )

    def _check_distinct_calls(self) -> None:
        least = self.min_distinct_calls
        if least > self.k:
            raise ValueError(f"resampler.min_distinct_calls={least}: at most resampler.k={self.k}")
        # Calls can only be compared before they are run if every continuation begins inside one.
        if least > 1 and not self.fork_at.inside_call:
            raise ValueError(
                f"resampler.min_distinct_calls={least}: continuations of "
                f"resampler.fork_at={self.fork_at.name!r} need not begin with a call; leave it out"
            )
