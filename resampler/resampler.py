"""Says which prefixes are forked, and when: sees every finished group of a batch, in order of completion.

It holds no engine and runs no fork: the forks it asks for go through the rollout pool, which knows where each prefix lies
in a cache, which engines live and how full they are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from resampler.config import ResamplerConfig
from resampler.online import Decision, Past, Selections
from resampler.select import adapted, budget, candidates, failed_up_to, prices
from rollout_workers.trajectory import Group, SpecialTokens

REMEMBERED = 64
"""Prefixes of which recovery and cost are remembered: at a rate of 1/8 a standard error of 4 points."""


@dataclass(frozen=True)
class History:
    """What finished batches taught: with it, another resampler goes on as this one would."""

    recoveries: tuple[bool, ...] = ()  # of the last prefixes, oldest first
    past: tuple[Past, ...] = ()  # of the last batches, oldest first
    costs: tuple[
        tuple[str, float], ...
    ] = ()  # of the same prefixes: the tool that the source called first, seconds


class Resampler:
    """A plain class; `start_resampler` makes it an actor."""

    def __init__(
        self, config: ResamplerConfig, tokens: SpecialTokens, n: int, seed: int = 0
    ) -> None:
        self._config, self._tokens, self._n, self._seed = config, tokens, n, seed
        self._selections = Selections(config.schedule)
        self._recoveries: deque[bool] = deque(maxlen=REMEMBERED)
        self._costs: deque[tuple[str, float]] = deque(maxlen=REMEMBERED)

    def offer(self, group: Group | None, step: int, index: int, questions: int) -> Decision:
        """Group `index` of the batch of `questions` that step `step` asked is finished; None: it was lost.

        Each index is offered once. The budget is that of the batch's questions, whether or not all of them are answered.
        Raises ValueError where a rollout has no reward.
        """
        config = self._config
        groups = [group] if group else []
        success_above = config.success_above
        if config.success_quantile is not None:
            seen = [reward for past in self._selections.past for reward in past.rewards]
            success_above = failed_up_to(seen, config.success_quantile, config.success_above)
        found = candidates(
            groups,
            self._tokens,
            config.ranking,
            seed=self._seed,
            step=step,
            first=index,
            fork_at=config.fork_at,
            success_above=success_above,
        )
        prefixes = budget(questions, self._n, config.k, config.budget_ratio) // config.k
        prefixes = adapted(prefixes, self._recoveries, config.target_recovery)
        dear = prices(self._costs, config.target_cost_s)
        rewards = group.rewards.tolist() if group else []
        return self._selections.offer(
            step, index, found[0] if found else [], questions, prefixes, dear, rewards
        )

    def learn(self, recovered: bool, tool: str = "", cost_s: float = 0.0) -> None:
        """What came of a resampled prefix, and what its tools cost; the next batch's budget knows it, where the recipe adapts budgets.

        `tool`: that the source called first.
        """
        self._recoveries.append(recovered)
        self._costs.append((tool, cost_s))

    def history(self) -> History:
        """What a checkpoint keeps of it. Batches under way are not in it: a resume asks their questions again."""
        return History(tuple(self._recoveries), self._selections.past, tuple(self._costs))

    def restore(self, history: History) -> None:
        """Go on from the history of an earlier process of the run."""
        self._recoveries = deque(history.recoveries, maxlen=REMEMBERED)
        self._costs = deque(history.costs, maxlen=REMEMBERED)
        self._selections = Selections(self._config.schedule, history.past)


def start_resampler(config: ResamplerConfig, tokens: SpecialTokens, n: int, seed: int = 0) -> Any:
    """The resampler as a Ray actor."""
    import ray

    return ray.remote(Resampler).options(num_cpus=0.1).remote(config, tokens, n, seed)
