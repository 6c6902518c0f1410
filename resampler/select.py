"""Which prefixes are resampled: trigger, ranking and budget (docs/method.md, rules 1 to 3), as pure functions.

A score orders candidates: lowest first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rollout_workers.trajectory import (
    ForkAt,
    Group,
    Resample,
    Span,
    SpecialTokens,
    Trajectory,
    fork_points,
    turns,
    uses_tools,
)

START = 20
"""Tokens over which ARPO compares entropies."""


@dataclass(frozen=True)
class Candidate:
    """A place where a rollout may be forked."""

    group: int  # index in the batch
    rollout: int  # index in the group
    prefix_tokens: int  # response tokens that are kept
    score: float
    tool: str = ""  # that its source called first


def triggered(
    rewards_N: NDArray[np.float64], subgroup_N: NDArray[np.bool_], success_above: float = 0.0
) -> bool:
    """True where the subgroup (rule 1: T, the tool-using rollouts) is not empty and none of its rewards is above `success_above`.

    The others of the group do not matter.
    """
    return bool(subgroup_N.any()) and not bool((rewards_N[subgroup_N] > success_above).any())


def confidence(trajectory: Trajectory, span: Span) -> float:
    """Mean probability, as sampled, over a span: of a whole tool call with both its tags (rule 2); in (0, 1]."""
    return float(np.exp(trajectory.logprobs[slice(*span)].astype(np.float64)).mean())


def entropy(trajectory: Trajectory, span: Span) -> float:
    """Mean token entropy in nats over a span. Raises ValueError where the engine was not asked for entropies."""
    if trajectory.entropies is None:
        raise ValueError(
            f"rollout {trajectory.rollout} of question {trajectory.question_id} has no entropies, which this ranking needs"
        )
    return float(trajectory.entropies[slice(*span)].astype(np.float64).mean())


def entropy_rise(trajectory: Trajectory, span: Span) -> float:
    """Mean entropy in nats over the first tokens of a turn after an observation, minus that over the rollout's first ones.

    ARPO's Delta H (arXiv 2507.19849, section 3.1) up to its constant log of the vocabulary's size. Raises as `entropy`.
    """
    (first, stop), (start, end) = turns(trajectory)[0], span
    return entropy(trajectory, (start, min(end, start + START))) - entropy(
        trajectory, (first, min(stop, first + START))
    )


def chance(seed: int, step: int, question_id: str, rollout: int, prefix_tokens: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: the order of groups in the batch does not matter."""
    key = f"{seed}\0{step}\0{question_id}\0{rollout}\0{prefix_tokens}".encode(
        "utf-8", "surrogatepass"
    )
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") / 2**32


def candidates(
    groups: Sequence[Group],
    tokens: SpecialTokens,
    ranking: Literal["confidence", "entropy", "random"],
    *,
    seed: int,
    step: int,
    first: int = 0,
    fork_at: ForkAt = "first_call",
    success_above: float = 0.0,
) -> list[list[Candidate]]:
    """Candidates of each group in the order of its rollouts: all of the subgroup where the group triggers, none elsewhere.

    The subgroup is T, or where answers are forked (an ablation) the rollouts without a tool. After observations (ARPO) there is no
    trigger: candidates are all places where the entropy rose, the highest rise first. `first`: the place in the batch of the first
    of `groups`.
    """
    arpo = fork_at == "observation"

    def score(trajectory: Trajectory, prefix_tokens: int, span: Span) -> float:
        if arpo:
            return -entropy_rise(trajectory, span)
        if ranking == "confidence":
            return confidence(trajectory, span)
        if ranking == "entropy":
            return -entropy(trajectory, span)
        return chance(seed, step, trajectory.question_id, trajectory.rollout, prefix_tokens)

    found = []
    for index, group in enumerate(groups, first):
        subgroup = np.array(
            [uses_tools(t, tokens) == (fork_at != "answer") for t in group.rollouts], dtype=np.bool_
        )
        sources = (
            group.rollouts if arpo or triggered(group.rewards, subgroup, success_above) else ()
        )
        points = [
            (t, prefix, span) for t in sources for prefix, span in fork_points(t, tokens, fork_at)
        ]
        scored = [
            Candidate(index, t.rollout, prefix, score(t, prefix, span), first_tool(t))
            for t, prefix, span in points
        ]
        found.append([candidate for candidate in scored if candidate.score < 0] if arpo else scored)
    return found


def budget(questions: int, n: int, k: int, ratio: float) -> int:
    """R = floor(ratio * B * N / K) * K extra rollouts for B questions of N (rule 3): within the budget, in whole K."""
    return (
        int(Fraction(str(ratio)) * questions * n / k) * k
    )  # exact: in floats 0.29 * 100 is below 29


def adapted(prefixes: int, recoveries: Sequence[bool], target: float | None) -> int:
    """The part of a budget of `prefixes` that their returns are worth: one at least, to go on measuring.

    The share that the recovery rate of the last prefixes is of its target; the whole where nothing is measured or there is no target.
    [past the paper] A resample that recovers nothing teaches nothing but to avoid its prefix, at the cost of K rollouts.
    """
    share = sum(recoveries) / len(recoveries) / target if recoveries and target is not None else 1.0
    return min(prefixes, max(1, round(prefixes * share)))


def first_tool(trajectory: Trajectory) -> str:
    """The name of the tool that a rollout's first call ran; empty where none ran."""
    return next(iter(trajectory.stats.tools), "")


def tool_cost(resample: Resample, call_costs: Mapping[str, float]) -> float:
    """Seconds: what the continuations of a prefix waited for tools, plus `call_costs` of each call that they made (else 0)."""
    return sum(
        t.stats.tool_seconds + sum(call_costs.get(tool, 0.0) for tool in t.stats.tools)
        for t in resample.continuations
    )


def prices(costs: Sequence[tuple[str, float]], target_s: float | None) -> dict[str, float]:
    """For how many prefixes of the budget one counts, by the tool that its source called first: at least 1, and 1 for tools not in it.

    A tool's mean cost over its target. `costs`: (that tool, seconds that the K continuations cost) of the last prefixes.
    [past the paper] So a batch's forks are expected to cost at most its prefixes times the target; cheap tools do not pay for dear ones.
    """
    if target_s is None:
        return {}
    by_tool: dict[str, list[float]] = {}
    for tool, seconds in costs:
        by_tool.setdefault(tool, []).append(seconds)
    return {
        tool: max(1.0, sum(seconds) / len(seconds) / target_s) for tool, seconds in by_tool.items()
    }


def failed_up_to(rewards: Sequence[float], quantile: float, otherwise: float) -> float:
    """The reward up to which a rollout failed: the lower `quantile` of the rewards seen, but never the best of them.

    [past the paper] So outcomes of 0 and 1 trigger as in rule 1, whatever their quantile; graded ones where no tool-using rollout
    is better than that share of what was seen. `otherwise` where fewer than two different rewards were.
    """
    levels = np.unique(np.asarray(rewards, np.float64))
    if len(levels) < 2:
        return otherwise
    return float(min(np.quantile(rewards, quantile, method="lower"), levels[-2]))


def allocate(candidates_B: Sequence[Sequence[Candidate]], prefixes: int) -> list[Candidate]:
    """At most `prefixes` candidates, breadth first (rule 3).

    Every question gives its lowest score first, questions in the order of that score; only when all have one, the second
    ones (in the order of their own scores: our reading), and so on. Ties go to the earlier group, then the earlier rollout.
    """
    turns = [
        (place, candidate.score, candidate.group, candidate.rollout, candidate)
        for found in candidates_B
        for place, candidate in enumerate(sorted(found, key=lambda c: (c.score, c.rollout)))
    ]
    return [candidate for *_, candidate in sorted(turns, key=lambda turn: turn[:4])[:prefixes]]
