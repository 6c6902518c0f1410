"""Measure what a training step cost: tokens, seconds, cache hits, tools, what was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from learner.credit import shaped_rewards
from rollout_workers.trajectory import Group, SpecialTokens, Trajectory, recovered, rewards_of

if TYPE_CHECKING:
    from axpo.training.flow import Taken


def rollout_metrics(
    groups: Sequence[Group], resampled: Sequence[Group], seconds: float
) -> dict[str, float]:
    """Return what a step's generation cost.

    Args:
        groups: what the policy did.
        resampled: the groups whose continuations came in this step; these may be earlier ones.
        seconds: the time between the batches that the learner took.

    Returns:
        `generated_tokens`; `fork_tokens`, those of continuations; `recovered_groups`, in which a
        continuation did better than its source. If they can be computed also:

        tokens_per_second           of the generated tokens
        tokens_per_recovered_group  fork tokens over recovered groups
        later_turns_cached_share    prompt tokens of second and further turns that came from the
                                    prefix cache
        tool_wait_share             of the rollouts' time
        rollout_seconds_mean, _max
    """
    continuations = _continuations(resampled)
    everyone = _rollouts(groups) + continuations
    generated = sum(t.policy_tokens for t in everyone)
    fork_tokens = sum(t.policy_tokens for t in continuations)
    recovered_groups = sum(_recovered(group) for group in resampled)
    numbers = {
        "generated_tokens": float(generated),
        "fork_tokens": float(fork_tokens),
        "recovered_groups": float(recovered_groups),
    }
    # A number whose denominator is 0 is left out, never reported as 0.
    if seconds:
        numbers["tokens_per_second"] = generated / seconds
    if recovered_groups:
        numbers["tokens_per_recovered_group"] = fork_tokens / recovered_groups
    return numbers | _cached_share(everyone) | _times(everyone)


def _rollouts(groups: Sequence[Group]) -> list[Trajectory]:
    rollouts: list[Trajectory] = []
    for group in groups:
        rollouts += group.rollouts
    return rollouts


def _continuations(groups: Sequence[Group]) -> list[Trajectory]:
    continuations: list[Trajectory] = []
    for group in groups:
        for resample in group.resamples:
            continuations += resample.continuations
    return continuations


def _recovered(group: Group) -> bool:
    return any(recovered(group, resample) for resample in group.resamples)


def _cached_share(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    later = sum(t.stats.later_prompt_tokens for t in trajectories)
    if not later:
        return {}
    cached = sum(t.stats.later_cached_tokens for t in trajectories)
    return {"later_turns_cached_share": cached / later}


def _times(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    seconds = sum(t.stats.seconds for t in trajectories)
    if not seconds:
        return {}
    return {
        "tool_wait_share": sum(t.stats.tool_seconds for t in trajectories) / seconds,
        "rollout_seconds_mean": seconds / len(trajectories),
        "rollout_seconds_max": max(t.stats.seconds for t in trajectories),
    }


def shaping_metrics(
    groups: Sequence[Group], tokens: SpecialTokens, tool_bonus: float
) -> dict[str, float]:
    """Return what `learner.credit.tool_bonus` added to the rewards.

    Every other metric is of the verified outcomes.

    Args:
        groups: what the policy did.
        tokens: the model's special tokens; they say which rollouts call a tool.
        tool_bonus: what a rollout that calls a tool gets in addition.

    Returns:
        `reward/tool_bonus`, added to a rollout on average, and `reward/shaped`, the mean reward
        that the learner sees. Nothing without a bonus.
    """
    rollouts = _rollouts(groups)
    if not tool_bonus or not rollouts:
        return {}
    shaped = float(shaped_rewards(rollouts, tokens, tool_bonus).mean())
    return {
        "reward/tool_bonus": shaped - float(rewards_of(rollouts).mean()),
        "reward/shaped": shaped,
    }


def batch_metrics(batch: Taken) -> dict[str, float]:
    """Return how old the groups of a batch were, and how much was carried, dropped, set aside."""
    ages = Counter(batch.staleness.values())
    return {
        **{f"staleness/{age}": float(count) for age, count in sorted(ages.items())},
        "groups_dropped": float(batch.dropped),
        "questions_aborted": float(batch.aborted),
        "questions_unusable": float(len(batch.unusable)),
        "groups_stale": float(batch.stale),
        "groups_uninformative": float(len(batch.uninformative)),
        "groups_carried": float(len(batch.carried)),
        "forks_dropped": float(batch.forks_dropped),
        "forks_collapsed": float(batch.forks_collapsed),
        "verifier_failures": float(batch.verifier_failures),
    }


def tool_metrics(
    stats: Mapping[str, Mapping[str, float]], prefix: str = "tool"
) -> dict[str, float]:
    """Return what the tool servers counted, as metrics `<prefix>/<tool>/<number>`.

    Args:
        stats: numbers by the tool's name, since they were last asked for (see
            `tool_server.stats.summarize`).
        prefix: what the metrics' names begin with.
    """
    metrics = {}
    for tool, numbers in stats.items():
        for name, value in numbers.items():
            metrics[f"{prefix}/{tool}/{name}"] = value
    return metrics
