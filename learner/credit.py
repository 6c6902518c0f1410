"""Credit: the verified outcomes of groups and their resamples become advantages on tokens (docs/method.md, rules 5 and 6).

Three streams, and no token is in two of them:

    every other rollout i        A_i = (r_i - mean_N) / (std_N + eps)               on its policy tokens
    prefix of a selected source  A_prefix = (r_prefix - mean) / (std + eps)         on its policy tokens up to the fork;
                                 mean and std over the group's rewards, the source's own replaced by
                                 r_prefix = max(r_source, max_k r_k)
    continuation k of K          A_k = (r_k - mean_K) / (std_K + eps)               on its policy tokens after the prefix

The source's own continuation trains nothing. Each entry weighs 1 / (N * B), so a selected source adds 1 + K entries and
dilutes no other. std is the population's. With rewards of 0 and 1, r_prefix is 1 iff any continuation is right.

Of a source forked at several places, the tokens up to a fork are credited with all the continuations that share them. A source
forked at the prompt shares nothing with its continuations: it is one of the other rollouts.

Ablation `joined`: a question's N rollouts and M continuations are one group. Advantages are (r - mean) / (std + eps) over its N + M
rewards, entries weigh 1 / ((N + M) * B), a source trains whole, and tokens that several of the N + M share are trained once, with
the mean of their advantages: what ARPO does with its branches (arXiv 2507.19849, hard advantages).
Ablation `prefix=False`: the second stream trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from learner.config import CreditConfig
from rollout_workers.trajectory import (
    Floats,
    ForkAt,
    Group,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    fork_points,
    rewards_of,
    uses_tools,
)


@dataclass(frozen=True)
class TrainItem:
    """One entry of the loss: weight * mean over the tokens with mask of the token loss."""

    question: Question
    trajectory: Trajectory
    advantages: Floats  # [R], 0 where mask is False
    mask: NDArray[np.bool_]  # [R], True on trained tokens
    weight: float


Baseline = Literal["group", "centered", "leave_one_out"]
Rewards: TypeAlias = NDArray[np.float64]
Entry: TypeAlias = tuple[Trajectory, NDArray[np.float64], NDArray[np.bool_]]
"""A trajectory, the advantage of each of its tokens [R], and which of them are trained [R]."""


def group_advantages(rewards: Rewards, baseline: Baseline = "group", eps: float = 1e-6) -> Rewards:
    """[N] -> [N]: r - mean, divided by the population std + eps for "group" (GRPO), as it is for "centered" (Dr.GRPO).

    "leave_one_out" (RLOO): r_i minus the mean of the other N - 1 rewards, N / (N - 1) times r - mean.
    """
    centered = rewards - rewards.mean()
    if baseline == "group":
        return centered / (rewards.std() + eps)
    return (
        centered * (len(rewards) / (len(rewards) - 1)) if baseline == "leave_one_out" else centered
    )


def shaped_rewards(
    trajectories: Sequence[Trajectory], tokens: SpecialTokens, tool_bonus: float
) -> Rewards:
    """The verified outcome of each, and `tool_bonus` for those that call a tool. Raises ValueError if one has no outcome."""
    return rewards_of(trajectories) + tool_bonus * np.array(
        [uses_tools(t, tokens) for t in trajectories]
    )


def credit(
    groups: Sequence[Group],
    tokens: SpecialTokens,
    baseline: Baseline = "group",
    settings: CreditConfig = CreditConfig(),
    *,
    eps: float = 1e-6,
) -> list[TrainItem]:
    """The train items of a batch of B groups; `baseline` as in `group_advantages`, in each stream. Without resamples this is plain GRPO.

    Raises ValueError for a rollout without a reward, two resamples of one source at one place, or a resample whose prefix is not
    its source's up to a fork point.
    """
    items: list[TrainItem] = []
    for group in groups:
        _check(group, tokens)
        rewards_N = shaped_rewards(group.rollouts, tokens, settings.tool_bonus)
        rewards_K = [
            shaped_rewards(resample.continuations, tokens, settings.tool_bonus)
            for resample in group.resamples
        ]
        streams = _joined if settings.joined else partial(_separate, prefix=settings.prefix)
        size = len(rewards_N) + (sum(map(len, rewards_K)) if settings.joined else 0)
        for trajectory, advantages, mask in streams(
            group, rewards_N, rewards_K, partial(group_advantages, baseline=baseline, eps=eps)
        ):
            items.append(
                _item(group.question, trajectory, advantages, mask, 1.0 / (size * len(groups)))
            )
    return [item for item in items if item.mask.any()]


def informative(group: Group) -> bool:
    """Whether not all rollouts and continuations of a group have one verified outcome; a tool bonus does not count."""
    continuations = [t.reward for resample in group.resamples for t in resample.continuations]
    return len({*group.rewards.tolist(), *continuations}) > 1


def sft_items(pairs: Sequence[tuple[Question, Trajectory]]) -> list[TrainItem]:
    """Supervised items on all policy tokens, weighted so that the summed loss is the mean over the batch's tokens."""
    tokens = [int(trajectory.policy_mask.sum()) for _, trajectory in pairs]
    return [
        _item(question, t, 1.0, t.policy_mask, n / sum(tokens))
        for (question, t), n in zip(pairs, tokens, strict=True)
        if n
    ]


def _separate(
    group: Group,
    rewards_N: Rewards,
    rewards_K: Sequence[Rewards],
    advantages_of: Callable[[Rewards], Rewards],
    prefix: bool,
) -> Iterator[Entry]:
    """The three streams; without the second where `prefix` is False."""
    for i, (rollout, plain) in enumerate(
        zip(group.rollouts, advantages_of(rewards_N), strict=True)
    ):
        own = _longest_first(group, i, rewards_K)
        advantages, replaced = np.full(len(rollout.response_ids), plain), rewards_N.copy()
        for resample, rewards in own:
            replaced[i] = max(replaced[i], rewards.max())
            advantages[: resample.prefix_tokens] = advantages_of(replaced)[i]
        frozen = own[0][0].prefix_tokens if own else 0
        yield (
            rollout,
            advantages,
            rollout.policy_mask & (prefix & ~_after(rollout, frozen) if frozen else True),
        )
        for resample, rewards in own:
            yield from _continuations(resample, advantages_of(rewards))


def _joined(
    group: Group,
    rewards_N: Rewards,
    rewards_K: Sequence[Rewards],
    advantages_of: Callable[[Rewards], Rewards],
) -> Iterator[Entry]:
    """One group of N + M."""
    together = advantages_of(np.concatenate([rewards_N, *rewards_K]))
    advantages_N, *advantages_K = np.split(
        together, np.cumsum([len(rewards_N), *map(len, rewards_K)])[:-1]
    )
    for i, (rollout, plain) in enumerate(zip(group.rollouts, advantages_N, strict=True)):
        advantages, sharing = np.full(len(rollout.response_ids), plain), [plain]
        for resample, after in _longest_first(group, i, advantages_K):
            sharing += list(after)
            advantages[: resample.prefix_tokens] = np.mean(sharing)
            yield from _continuations(resample, after)
        yield rollout, advantages, rollout.policy_mask


def _continuations(resample: Resample, advantages_K: Rewards) -> Iterator[Entry]:
    for continuation, advantage in zip(resample.continuations, advantages_K, strict=True):
        mask = continuation.policy_mask & _after(continuation, resample.prefix_tokens)
        yield continuation, np.full(len(mask), advantage), mask


def _longest_first(
    group: Group, source: int, values: Sequence[Rewards]
) -> list[tuple[Resample, Rewards]]:
    """The resamples of a source, each with its entry of `values`: those of longer prefixes share the tokens of shorter ones."""
    own = [
        (resample, value)
        for resample, value in zip(group.resamples, values, strict=True)
        if resample.source == source
    ]
    return sorted(own, key=lambda pair: -pair[0].prefix_tokens)


def _after(trajectory: Trajectory, position: int) -> NDArray[np.bool_]:
    return np.arange(len(trajectory.response_ids)) >= position


def _item(
    question: Question,
    trajectory: Trajectory,
    advantages: Rewards | float,
    mask: NDArray[np.bool_],
    weight: float,
) -> TrainItem:
    return TrainItem(
        question, trajectory, np.where(mask, advantages, 0.0).astype(np.float32), mask, weight
    )


def _check(group: Group, tokens: SpecialTokens) -> None:
    seen = set()
    for resample in group.resamples:
        source, cut = group.rollouts[resample.source], resample.prefix_tokens
        where = f"rollout {source.rollout} of question {source.question_id}"
        if (resample.source, cut) in seen:
            raise ValueError(
                f"{where}: resampled twice at token {cut}, its prefix would get two signals"
            )
        seen.add((resample.source, cut))
        if cut not in {
            prefix for at in get_args(ForkAt) for prefix, _ in fork_points(source, tokens, at)
        }:
            raise ValueError(
                f"{where}: a prefix of {cut} tokens ends at no fork point, such as the opening tag of a tool call"
            )
        for k, continuation in enumerate(resample.continuations):
            if not np.array_equal(continuation.response_ids[:cut], source.response_ids[:cut]):
                raise ValueError(
                    f"{where}: continuation {k} does not start with its source's prefix"
                )
