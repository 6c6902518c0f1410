"""What a step's groups say about the policy: the diagnostics of the AXPO paper and unbiased Pass@k. Pure functions.

Every rate is a share in [0, 1]. A rate whose denominator is 0 is left out, never reported as 0 or NaN.
A rollout is right where its reward is above 0 and wrong where it is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import comb

import numpy as np

from rollout_workers.trajectory import (
    EndReason,
    Group,
    SpecialTokens,
    Trajectory,
    recovered,
    tool_call_spans,
    turns,
    uses_tools,
)


def diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens, success_above: float = 0.0
) -> dict[str, float]:
    """Every diagnostic of one step's B scored groups; `{}` for no group.

    Rollouts (N a question, forks excluded): `pass1` (mean reward), `tool_use_rate`, `pass1_given_tool`, `pass1_given_no_tool`,
    `turns_per_rollout`, `policy_tokens_per_rollout`, `tool_calls_per_rollout`, `call_failure_rate` (calls answered with an
    error that is the policy's fault, a call), `end/<reason>` (share of rollouts), and where several tools ran `use/<tool>` (share of
    rollouts in which that tool ran at least once).
    Questions: `tool_all_wrong_rate` and `no_tool_all_wrong_rate` (share of the questions whose tool-using / no-tool
    subgroup is not empty where that whole subgroup is wrong: no reward above `success_above`), `trigger_rate` (share of all questions).
    Resampled prefixes: `resampled_prefixes` (count), `recovery_rate` (share with a continuation better than the source),
    `resample_pass1` (mean reward of the continuations, p(t1) of Proposition 1), `distinct_calls_per_prefix` (distinct first calls among
    the K, by token ids), `fork_cached_share` and `fork_cached_share_min` (a fork's prompt tokens that came from the engine's prefix cache).
    Raises ValueError where a rollout has no reward.
    """
    if not groups:
        return {}
    return _means(
        {
            **_rollout_diagnostics(groups, tokens),
            **_subgroup_diagnostics(groups, tokens, success_above),
            **_resample_diagnostics(groups, tokens),
        }
    )


def evaluate_groups(
    groups: Sequence[Group], tokens: SpecialTokens, k: int = 4, success_above: float = 0.0
) -> dict[str, float]:
    """Held-out summary: `pass1`, `pass<k>`, `tool_use`, `use/<tool>` of several, `pass1_given_...` and `..._all_wrong_rate` of both
    subgroups; `{}` for no group.

    Raises ValueError where a group has fewer than k rollouts or a rollout has no reward.
    """
    if not groups:
        return {}
    shared = diagnostics(groups, tokens, success_above)
    chances = [pass_at_k(int((g.rewards > 0).sum()), len(g.rollouts), k) for g in groups]
    summary = {
        "pass1": shared["pass1"],
        f"pass{k}": float(np.mean(chances)),
        "tool_use": shared["tool_use_rate"],
    }
    others = (
        "pass1_given_tool",
        "pass1_given_no_tool",
        "tool_all_wrong_rate",
        "no_tool_all_wrong_rate",
    )
    return summary | {
        name: value for name, value in shared.items() if name in others or name.startswith("use/")
    }


def question_counts(groups: Sequence[Group], tokens: SpecialTokens) -> dict[str, list[list[int]]]:
    """What intervals over questions need: of each question its rollouts, the right, the tool-using, and the right tool-using ones.

    In the order of the groups, under their kind of question (`info["kind"]`; "" without one), of a mixed task `<family>/<kind>`.
    Raises ValueError where a rollout has no reward.
    """
    counts: dict[str, list[list[int]]] = {}
    for group in groups:
        right = group.rewards > 0
        used = np.array([uses_tools(t, tokens) for t in group.rollouts])
        row = [len(group.rollouts), int(right.sum()), int(used.sum()), int((right & used).sum())]
        info = group.question.info
        kind = str(info.get("kind", ""))
        counts.setdefault(f"{info['family']}/{kind}" if "family" in info else kind, []).append(row)
    return counts


def by_family(
    groups: Sequence[Group], measure: Callable[[Sequence[Group]], Mapping[str, float]]
) -> dict[str, float]:
    """`<family>/<name>` of each family's groups, for questions of a mixed task; `{}` for those of any other."""
    families = sorted(
        {group.question.info["family"] for group in groups if "family" in group.question.info}
    )
    return {
        f"{family}/{name}": value
        for family in families
        for name, value in measure(
            [group for group in groups if group.question.info.get("family") == family]
        ).items()
    }


def by_kind(
    groups: Sequence[Group], measure: Callable[[Sequence[Group]], Mapping[str, float]]
) -> dict[str, float]:
    """`kind/<kind>/<name>` of each kind of question (`info["kind"]`, a text); `{}` where there are not several. Spaces become `_`."""
    kinds = [
        kind if isinstance(kind := group.question.info.get("kind"), str) else None
        for group in groups
    ]
    named = sorted({kind for kind in kinds if kind is not None})
    if len(named) < 2:
        return {}
    return {
        f"kind/{kind.replace(' ', '_')}/{name}": value
        for kind in named
        for name, value in measure(
            [group for group, its in zip(groups, kinds, strict=True) if its == kind]
        ).items()
    }


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased Pass@k from n samples: 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, equation 1)."""
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass_at_k needs 1 <= k <= n and 0 <= correct <= n, got correct={correct}, n={n}, k={k}"
        )
    return 1.0 - comb(n - correct, k) / comb(n, k)


def _rollout_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens
) -> dict[str, Sequence[float]]:
    rollouts = [
        (t, float(r), uses_tools(t, tokens))
        for g in groups
        for t, r in zip(g.rollouts, g.rewards, strict=True)
    ]
    calls = sum(t.stats.tool_calls for t, _, _ in rollouts)
    ends = Counter(t.end for t, _, _ in rollouts)
    ran = sorted({tool for t, _, _ in rollouts for tool in t.stats.tools})
    return {
        "pass1": [r for _, r, _ in rollouts],
        "tool_use_rate": [used for _, _, used in rollouts],
        "pass1_given_tool": [r for _, r, used in rollouts if used],
        "pass1_given_no_tool": [r for _, r, used in rollouts if not used],
        "turns_per_rollout": [len(turns(t)) for t, _, _ in rollouts],
        "policy_tokens_per_rollout": [t.policy_tokens for t, _, _ in rollouts],
        "tool_calls_per_rollout": [t.stats.tool_calls for t, _, _ in rollouts],
        "call_failure_rate": [sum(t.stats.tool_failures for t, _, _ in rollouts) / calls]
        if calls
        else [],
        **{
            f"use/{tool}": [tool in t.stats.tools for t, _, _ in rollouts]
            for tool in ran
            if len(ran) > 1
        },
        **{
            f"end/{end}": [ends[end] / len(rollouts)] for end in EndReason if not end.infrastructure
        },
    }


def _subgroup_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens, success_above: float
) -> dict[str, Sequence[float]]:
    all_wrong: dict[bool, list[bool]] = {True: [], False: []}
    for group in groups:
        used = np.array([uses_tools(t, tokens) for t in group.rollouts])
        for kind in (True, False):
            if (used == kind).any():
                all_wrong[kind].append(not (group.rewards[used == kind] > success_above).any())
    return {
        "tool_all_wrong_rate": all_wrong[True],
        "no_tool_all_wrong_rate": all_wrong[False],
        "trigger_rate": [sum(all_wrong[True]) / len(groups)],
    }


def _resample_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens
) -> dict[str, Sequence[float]]:
    resamples = [r for g in groups for r in g.resamples]
    rewards = [[_reward(t) for t in r.continuations] for r in resamples]
    cached = [
        t.stats.cached_tokens / t.stats.prompt_tokens
        for r in resamples
        for t in r.continuations
        if t.stats.prompt_tokens
    ]
    return {
        "resampled_prefixes": [len(resamples)],
        "recovery_rate": [recovered(g, r) for g in groups for r in g.resamples],
        "resample_pass1": [reward for r in rewards for reward in r],
        "distinct_calls_per_prefix": [
            len({_next_call(t, r.prefix_tokens, tokens) for t in r.continuations})
            for r in resamples
        ],
        "fork_cached_share": cached,
        "fork_cached_share_min": [min(cached)] if cached else [],
    }


def _next_call(trajectory: Trajectory, prefix_tokens: int, tokens: SpecialTokens) -> bytes:
    """Token ids of the call that opens with the last token of the shared prefix, else of the first one after it; none is b""."""
    spans = [span for span in tool_call_spans(trajectory, tokens) if span[0] >= prefix_tokens - 1]
    return trajectory.response_ids[slice(*spans[0])].tobytes() if spans else b""


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"a resample of question {trajectory.question_id} ended in {trajectory.end} and has no reward"
        )
    return trajectory.reward


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(v)) for name, v in values.items() if v}
