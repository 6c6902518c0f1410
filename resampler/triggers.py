"""Say which rollouts failed, for the trigger (docs/method.md, rule 1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from axpo.registry import Registry, Variant


class Trigger(Variant):
    """Say up to which reward a rollout failed. A question triggers if its whole subgroup failed."""

    success_above: float = Field(
        0.0,
        description="a rollout failed if its reward is not above this, for outcomes that are not "
        "only 0 and 1; diagnostics always count failures so",
    )

    @abstractmethod
    def failed_up_to(self, rewards_seen: Sequence[float]) -> float:
        """Return the reward up to which a rollout failed.

        Args:
            rewards_seen: the rewards of the last batches' rollouts, continuations excluded.
        """


triggers: Registry[Trigger] = Registry("triggers", Trigger, "failed_up_to", default="all_wrong")


@triggers.register("all_wrong")
class AllWrong(Trigger):
    """A rollout failed if its reward is not above `success_above` (the paper)."""

    def failed_up_to(self, rewards_seen: Sequence[float]) -> float:
        return self.success_above


@triggers.register("quantile")
class Quantile(Trigger):
    """A rollout failed if its reward is not above a quantile of the last rewards.

    Past the paper, for outcomes whose scale is not known. The best reward seen never failed. So
    outcomes of 0 and 1 trigger as in rule 1, whatever the quantile, and graded outcomes trigger
    if no rollout of the subgroup is better than that share of what was seen. Until two different
    rewards were seen, `success_above` says what failed.
    """

    quantile: float = Field(0.5, gt=0, lt=1, description="the lower quantile of the rewards seen")

    def failed_up_to(self, rewards_seen: Sequence[float]) -> float:
        """Return the quantile of the rewards, or the second best reward if that is lower."""
        levels = np.unique(np.asarray(rewards_seen, np.float64))
        # One level alone does not say whether it is a success.
        if len(levels) < 2:
            return self.success_above
        quantile = np.quantile(rewards_seen, self.quantile, method="lower")
        # The best reward never failed, even if the quantile is as high.
        return float(min(quantile, levels[-2]))
