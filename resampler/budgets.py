"""Say how many prefixes of a batch are forked (docs/method.md, rule 3), and what each one costs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from axpo.registry import Registry, Variant
from resampler.history import History, Outcome
from rollout_workers.trajectory import Group, Resample, Trajectory, recovered


class Budget(Variant):
    """Say how many prefixes a batch may fork."""

    learns: ClassVar[bool] = True
    """Whether it reads what came of earlier resamples; if not, nobody needs to report it."""

    @abstractmethod
    def prefixes(self, questions: int, n: int, k: int, history: History) -> int:
        """Return the number of prefixes that a batch may fork.

        Args:
            questions: questions of the batch (B).
            n: rollouts of a question (N).
            k: continuations of a prefix (K).
            history: what earlier batches and resamples taught.
        """

    def prices(self, history: History) -> dict[str, float]:
        """Return how many units of the budget a prefix uses up, by the tool that its source called.

        The tool is that of the source's first call. A prefix of any other tool uses up one unit.
        """
        return {}

    def cost_s(self, resample: Resample) -> float:
        """Return what the continuations of a prefix cost, in seconds: their wait for tools."""
        return tool_cost(resample, {})

    def outcome(self, group: Group, resample: Resample) -> Outcome:
        """Return what the history remembers of a resampled prefix of `group`."""
        source = next(t for t in group.rollouts if t.rollout == resample.source)
        return Outcome(recovered(group, resample), first_tool(source), self.cost_s(resample))


budgets: Registry[Budget] = Registry("budgets", Budget, core="prefixes", default="paper")


@budgets.register("paper")
class PaperBudget(Budget):
    """Fork the same share of extra rollouts in every batch (the paper)."""

    learns = False

    ratio: float = Field(
        0.25, ge=0, description="extra rollouts of a batch, relative to its own rollouts"
    )

    def prefixes(self, questions: int, n: int, k: int, history: History) -> int:
        """Return floor(ratio * B * N / K)."""
        return whole_prefixes(questions, n, k, self.ratio)


@budgets.register("adaptive")
class AdaptiveBudget(Budget):
    """Fork less if few prefixes recover, or if their tools are expensive (past the paper).

    A resample that recovers nothing teaches nothing but to avoid its prefix, and costs K rollouts.
    """

    ratio: float = Field(
        0.25, ge=0, description="extra rollouts of a batch, relative to its own rollouts, at most"
    )
    target_recovery: float | None = Field(
        None,
        gt=0,
        le=1,
        description="recovery rate from which on the whole budget is spent; below it a share in "
        "proportion. None: always the whole budget",
    )
    target_cost_s: float | None = Field(
        None,
        gt=0,
        description="seconds of tools, `call_costs` included, that the K continuations of a "
        "prefix may take together; if those at a tool took more of late, a prefix at it uses up "
        "more than one unit of the budget, in proportion. None: whatever they take",
    )
    call_costs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="price of a call by the tool's name, in seconds: what it costs beside its "
        "latency",
    )

    @model_validator(mode="after")
    def _has_a_target(self) -> AdaptiveBudget:
        if self.call_costs and self.target_cost_s is None:
            raise ValueError("call_costs means nothing without target_cost_s")
        if self.target_recovery is None and self.target_cost_s is None:
            raise ValueError("expected target_recovery or target_cost_s, or both")
        return self

    def prefixes(self, questions: int, n: int, k: int, history: History) -> int:
        """Return the share of the whole budget that the recovery rate is of its target.

        It is the whole budget if nothing was measured yet, and if there is no such target.
        """
        whole = whole_prefixes(questions, n, k, self.ratio)
        share = 1.0
        if history.recoveries and self.target_recovery is not None:
            rate = sum(history.recoveries) / len(history.recoveries)
            share = rate / self.target_recovery
        # At least one prefix, or the recovery rate would never be measured again.
        return min(whole, max(1, round(whole * share)))

    def prices(self, history: History) -> dict[str, float]:
        """Return the mean cost of a prefix at each tool, over its target; at least 1.

        So the forks of a batch are expected to cost at most its prefixes times the target. Cheap
        tools do not pay for expensive ones.
        """
        if self.target_cost_s is None:
            return {}
        by_tool: dict[str, list[float]] = {}
        for tool, seconds in history.costs:
            by_tool.setdefault(tool, []).append(seconds)
        return {
            tool: max(1.0, sum(seconds) / len(seconds) / self.target_cost_s)
            for tool, seconds in by_tool.items()
        }

    def cost_s(self, resample: Resample) -> float:
        """Return the wait for tools, plus `call_costs` of each call that ran, in seconds."""
        return tool_cost(resample, self.call_costs)


def whole_prefixes(questions: int, n: int, k: int, ratio: float) -> int:
    """Return floor(ratio * B * N / K): whole prefixes of K continuations, within the ratio."""
    # A fraction is exact; in floats 0.29 * 100 is below 29.
    return int(Fraction(str(ratio)) * questions * n / k)


def first_tool(trajectory: Trajectory) -> str:
    """Return the name of the tool that a rollout's first call reached; empty if none ran."""
    return next(iter(trajectory.stats.tools), "")


def tool_cost(resample: Resample, call_costs: Mapping[str, float]) -> float:
    """Return what the tools of a prefix's continuations cost, in seconds.

    Args:
        resample: the prefix and its continuations.
        call_costs: price of a call by the tool's name, in seconds; calls of other tools have none.

    Returns:
        The seconds that the continuations waited for tools, plus the prices of their calls.
    """
    return sum(_tool_cost_of(continuation, call_costs) for continuation in resample.continuations)


def _tool_cost_of(trajectory: Trajectory, call_costs: Mapping[str, float]) -> float:
    stats = trajectory.stats
    return stats.tool_seconds + sum(call_costs.get(tool, 0.0) for tool in stats.tools)
