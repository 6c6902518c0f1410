"""What a step's groups say about the policy: the diagnostics of the AXPO paper, and Pass@k.

These are pure functions. Every rate is a share in [0, 1]. A rate with a denominator of 0 is left
out; it is never reported as 0 or NaN. A rollout is right if its reward is above 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from rollout_workers.trajectory import (
    EndReason,
    Group,
    Resample,
    SpecialTokens,
    Trajectory,
    recovered,
    tool_call_spans,
    turns,
    uses_tools,
)

Measure = Callable[[Sequence[Group]], Mapping[str, float]]
"""Numbers of some groups, by name."""

HELD_OUT = (
    "pass1_given_tool",
    "pass1_given_no_tool",
    "tool_all_wrong_rate",
    "no_tool_all_wrong_rate",
    "end/out_of_tokens",
)
"""The diagnostics that an evaluation reports under the same name as training does."""


@dataclass(frozen=True)
class _Rollout:
    """One scored rollout."""

    trajectory: Trajectory
    reward: float
    used_tools: bool


def diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens, success_above: float = 0.0
) -> dict[str, float]:
    """Return every diagnostic of one step's groups.

    Of the rollouts, without continuations:

    - `pass1`: mean reward; `pass1_given_tool` and `pass1_given_no_tool`: of those with and without
      a tool call; `tool_use_rate`: share with a tool call.
    - `turns_per_rollout`, `policy_tokens_per_rollout`, `tool_calls_per_rollout`: means.
    - `call_failure_rate`: share of the calls answered with an error that is the policy's fault.
    - `use/<tool>`: share of rollouts in which that tool ran; only if several tools ran.
    - `end/<reason>`: share of rollouts that ended so.

    Of the questions:

    - `tool_all_wrong_rate` and `no_tool_all_wrong_rate`: of the questions with a tool-using (or
      no-tool) rollout, the share on which all of these are wrong.
    - `trigger_rate`: share of all questions with tool-using rollouts that are all wrong.

    Of the resampled prefixes:

    - `resampled_prefixes`: their number.
    - `recovery_rate`: share with a continuation better than the source.
    - `resample_pass1`: mean reward of the continuations, p(t1) of Proposition 1.
    - `distinct_calls_per_prefix`: distinct first calls among the K continuations, by token ids.
    - `fork_cached_share` and `fork_cached_share_min`: mean and least share of a continuation's
      prompt tokens that came from the engine's prefix cache.

    Args:
        groups: the scored groups of B questions.
        tokens: the special tokens of the model.
        success_above: all rollouts of a subgroup are wrong if no reward is above this.

    Returns:
        The numbers by name; `{}` without groups.

    Raises:
        ValueError: a rollout or a continuation has no reward.
    """
    if not groups:
        return {}
    values = {
        **_rollout_diagnostics(groups, tokens),
        **_subgroup_diagnostics(groups, tokens, success_above),
    }
    return _means(values) | resample_diagnostics(groups, tokens)


def resample_diagnostics(groups: Sequence[Group], tokens: SpecialTokens) -> dict[str, float]:
    """Return those diagnostics that are of the resampled prefixes of groups.

    Raises:
        ValueError: a continuation has no reward.
    """
    return _means(_resample_diagnostics(groups, tokens))


def evaluate_groups(
    groups: Sequence[Group], tokens: SpecialTokens, k: int = 4, success_above: float = 0.0
) -> dict[str, float]:
    """Return what a held-out evaluation reports.

    The numbers are `pass1`, `pass<k>` and `tool_use`, and under the names of `diagnostics` the
    `use/<tool>` of several tools, Pass@1 and the all-wrong rate of both subgroups, and the share of
    rollouts that ended out of tokens.

    Args:
        groups: the scored groups, of at least k rollouts each.
        tokens: the special tokens of the model.
        k: the samples of Pass@k.
        success_above: as in `diagnostics`; the recipe's, so that both agree.

    Returns:
        The numbers by name; `{}` without groups.

    Raises:
        ValueError: a group has fewer than k rollouts, or a rollout has no reward.
    """
    if not groups:
        return {}
    shared = diagnostics(groups, tokens, success_above)
    chances = [
        pass_at_k(int((group.rewards > 0).sum()), len(group.rollouts), k) for group in groups
    ]
    # Not all diagnostics: lengths, ends and resamples are matters of training.
    summary = {
        "pass1": shared["pass1"],
        f"pass{k}": float(np.mean(chances)),
        "tool_use": shared["tool_use_rate"],
    }
    for name, value in shared.items():
        if name in HELD_OUT or name.startswith("use/"):
            summary[name] = value
    return summary


def question_counts(groups: Sequence[Group], tokens: SpecialTokens) -> dict[str, list[list[int]]]:
    """Return what confidence intervals over questions need.

    Returns:
        Under each kind of question (`info["kind"]`, "" without one; `<family>/<kind>` for those of
        a mixed task) a row for each question, in the order of the groups: how many rollouts it
        has, how many are right, how many used tools, and how many did both.

    Raises:
        ValueError: a rollout has no reward.
    """
    counts: dict[str, list[list[int]]] = {}
    for group in groups:
        right = group.rewards > 0
        used = _used_tools(group, tokens)
        row = [len(group.rollouts), int(right.sum()), int(used.sum()), int((right & used).sum())]
        info = group.question.info
        kind = str(info.get("kind", ""))
        part = f"{info['family']}/{kind}" if "family" in info else kind
        counts.setdefault(part, []).append(row)
    return counts


def by_family(groups: Sequence[Group], measure: Measure) -> dict[str, float]:
    """Return `<family>/<name>` of each family of a mixed task; `{}` for any other task."""
    # A mixed task notes the family of each question; other tasks have none.
    families = [group.question.info.get("family") for group in groups]
    numbers = {}
    for family in sorted({family for family in families if family is not None}):
        for name, value in measure(_labelled(groups, families, family)).items():
            numbers[f"{family}/{name}"] = value
    return numbers


def by_kind(groups: Sequence[Group], measure: Measure) -> dict[str, float]:
    """Return `kind/<kind>/<name>` of each kind of question, with `_` for the spaces of a kind.

    The kind of a question is `info["kind"]`, if it is a text. Without several kinds the result is
    `{}`.
    """
    kinds = [_text(group.question.info.get("kind")) for group in groups]
    named = sorted({kind for kind in kinds if kind is not None})
    # The numbers of a single kind would repeat those of all questions.
    if len(named) < 2:
        return {}
    numbers = {}
    for kind in named:
        key = kind.replace(" ", "_")
        for name, value in measure(_labelled(groups, kinds, kind)).items():
            numbers[f"kind/{key}/{name}"] = value
    return numbers


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Return unbiased Pass@k from n samples (Chen et al. 2021, equation 1).

    It is 1 - C(n - correct, k) / C(n, k).

    Args:
        correct: right samples, 0 to n.
        n: all samples.
        k: samples of which one must be right, 1 to n.

    Raises:
        ValueError: the counts are not possible.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            "pass_at_k needs 1 <= k <= n and 0 <= correct <= n, "
            f"got correct={correct}, n={n}, k={k}"
        )
    return 1.0 - comb(n - correct, k) / comb(n, k)


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(np.mean(numbers)) for name, numbers in values.items() if numbers}


def _labelled(groups: Sequence[Group], labels: Sequence[str | None], wanted: str) -> list[Group]:
    """Return the groups with the wanted label."""
    return [group for group, label in zip(groups, labels, strict=True) if label == wanted]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _used_tools(group: Group, tokens: SpecialTokens) -> NDArray[np.bool_]:
    """Return which rollouts of a group used tools, shape [N]."""
    return np.array([uses_tools(trajectory, tokens) for trajectory in group.rollouts])


def _rollout_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens
) -> dict[str, Sequence[float]]:
    rollouts = []
    for group in groups:
        for trajectory, reward in zip(group.rollouts, group.rewards, strict=True):
            used = uses_tools(trajectory, tokens)
            rollouts.append(_Rollout(trajectory, float(reward), used))
    return {
        **_outcomes(rollouts),
        **_sizes([rollout.trajectory for rollout in rollouts]),
        **_tools([rollout.trajectory for rollout in rollouts]),
        **_ends([rollout.trajectory for rollout in rollouts]),
    }


def _outcomes(rollouts: Sequence[_Rollout]) -> dict[str, Sequence[float]]:
    return {
        "pass1": [rollout.reward for rollout in rollouts],
        "tool_use_rate": [rollout.used_tools for rollout in rollouts],
        "pass1_given_tool": [rollout.reward for rollout in rollouts if rollout.used_tools],
        "pass1_given_no_tool": [rollout.reward for rollout in rollouts if not rollout.used_tools],
    }


def _sizes(rollouts: Sequence[Trajectory]) -> dict[str, Sequence[float]]:
    return {
        "turns_per_rollout": [len(turns(rollout)) for rollout in rollouts],
        "policy_tokens_per_rollout": [rollout.policy_tokens for rollout in rollouts],
        "tool_calls_per_rollout": [rollout.stats.tool_calls for rollout in rollouts],
    }


def _tools(rollouts: Sequence[Trajectory]) -> dict[str, Sequence[float]]:
    calls = sum(rollout.stats.tool_calls for rollout in rollouts)
    # A share of all calls, not a mean of the rollouts' shares.
    failures = sum(rollout.stats.tool_failures for rollout in rollouts)
    values: dict[str, Sequence[float]] = {"call_failure_rate": [failures / calls] if calls else []}
    ran: set[str] = set()
    for rollout in rollouts:
        ran.update(rollout.stats.tools)
    # With one tool its share would repeat what tool_use_rate says.
    if len(ran) > 1:
        for tool in sorted(ran):
            values[f"use/{tool}"] = [tool in rollout.stats.tools for rollout in rollouts]
    return values


def _ends(rollouts: Sequence[Trajectory]) -> dict[str, Sequence[float]]:
    ends = Counter(rollout.end for rollout in rollouts)
    # A rollout that infrastructure ended has no reward, so it is in no group that is scored.
    own_ends = [end for end in EndReason if not end.infrastructure]
    return {f"end/{end}": [ends[end] / len(rollouts)] for end in own_ends}


def _subgroup_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens, success_above: float
) -> dict[str, Sequence[float]]:
    tool_all_wrong: list[bool] = []
    no_tool_all_wrong: list[bool] = []
    for group in groups:
        succeeded = group.rewards > success_above
        used = _used_tools(group, tokens)
        # A question without a subgroup does not count for the rate of that subgroup.
        if used.any():
            tool_all_wrong.append(not succeeded[used].any())
        if not used.all():
            no_tool_all_wrong.append(not succeeded[~used].any())
    return {
        "tool_all_wrong_rate": tool_all_wrong,
        "no_tool_all_wrong_rate": no_tool_all_wrong,
        # Of all questions, those without tool-using rollouts included.
        "trigger_rate": [sum(tool_all_wrong) / len(groups)],
    }


def _resample_diagnostics(
    groups: Sequence[Group], tokens: SpecialTokens
) -> dict[str, Sequence[float]]:
    resamples: list[Resample] = []
    recoveries: list[bool] = []
    for group in groups:
        resamples += group.resamples
        recoveries += [recovered(group, resample) for resample in group.resamples]
    continuations: list[Trajectory] = []
    for resample in resamples:
        continuations += resample.continuations
    cached = _cached_shares(continuations)
    return {
        "resampled_prefixes": [len(resamples)],
        "recovery_rate": recoveries,
        "resample_pass1": [_reward(continuation) for continuation in continuations],
        "distinct_calls_per_prefix": [_distinct_calls(resample, tokens) for resample in resamples],
        "fork_cached_share": cached,
        "fork_cached_share_min": [min(cached)] if cached else [],
    }


def _cached_shares(continuations: Sequence[Trajectory]) -> list[float]:
    """Return the share of each continuation's prompt that the prefix cache had.

    Of a continuation without a prompt of its own nothing is known: it is left out.
    """
    stats = [continuation.stats for continuation in continuations]
    return [of.cached_tokens / of.prompt_tokens for of in stats if of.prompt_tokens]


def _distinct_calls(resample: Resample, tokens: SpecialTokens) -> int:
    prefix = resample.prefix_tokens
    calls = {_next_call(continuation, prefix, tokens) for continuation in resample.continuations}
    return len(calls)


def _next_call(trajectory: Trajectory, prefix_tokens: int, tokens: SpecialTokens) -> bytes:
    """Return the token ids of a continuation's first call; b"" if it makes none.

    The call may open with the last token of the prefix, which is the opening tag if the prefix was
    cut at a call.
    """
    for start, stop in tool_call_spans(trajectory, tokens):
        if start >= prefix_tokens - 1:
            return trajectory.response_ids[start:stop].tobytes()
    return b""


def _reward(trajectory: Trajectory) -> float:
    if trajectory.reward is None:
        raise ValueError(
            f"a resample of question {trajectory.question_id} ended in {trajectory.end} "
            "and has no reward"
        )
    return trajectory.reward
