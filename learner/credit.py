"""Credit: the verified outcomes of groups and their resamples become advantages on tokens (AXPO, sections 5 and 6).

Three streams, and no token is in two of them:

    every other rollout i        A_i = (r_i - mean_N) / (std_N + eps)               on its policy tokens
    prefix of a selected source  A_prefix = (r_prefix - mean) / (std + eps)         on its policy tokens up to the opening tag;
                                 mean and std over the group's rewards, the source's own replaced by r_prefix = max_k r_k
    continuation k of K          A_k = (r_k - mean_K) / (std_K + eps)               on its policy tokens after the prefix

The source's own continuation trains nothing. Each entry weighs 1 / (N * B), so a selected source adds 1 + K entries and
dilutes no other. std is the population's. With rewards of 0 and 1, r_prefix is 1 iff any continuation is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rollout_workers.trajectory import Floats, Group, Question, Resample, SpecialTokens, Trajectory, tool_call_spans


@dataclass(frozen=True)
class TrainItem:
    """One entry of the loss: weight * mean over the tokens with mask of the token loss."""

    question: Question
    trajectory: Trajectory
    advantages: Floats  # [R], 0 where mask is False
    mask: NDArray[np.bool_]  # [R], True on trained tokens
    weight: float


Baseline = Literal["group", "centered", "leave_one_out"]


def group_advantages(rewards: NDArray[np.float64], baseline: Baseline = "group", eps: float = 1e-6) -> NDArray[np.float64]:
    """[N] -> [N]: r - mean, divided by the population std + eps for "group" (GRPO), as it is for "centered" (Dr.GRPO).

    "leave_one_out" (RLOO): r_i minus the mean of the other N - 1 rewards, N / (N - 1) times r - mean.
    """
    centered = rewards - rewards.mean()
    if baseline == "group":
        return centered / (rewards.std() + eps)
    return centered * (len(rewards) / (len(rewards) - 1)) if baseline == "leave_one_out" else centered


def credit(groups: Sequence[Group], tokens: SpecialTokens, baseline: Baseline = "group", *, eps: float = 1e-6) -> list[TrainItem]:
    """The train items of a batch of B groups; `baseline` as in `group_advantages`, in each stream. Without resamples this is plain GRPO.

    Raises ValueError for a rollout without a reward, two resamples of one source, or a resample whose prefix is not
    its source's up to and including the opening tag of one of its tool calls.
    """
    items: list[TrainItem] = []
    for group in groups:
        rewards = group.rewards
        weight = 1.0 / (len(rewards) * len(groups))
        resamples = {resample.source: resample for resample in group.resamples}
        if len(resamples) < len(group.resamples):
            raise ValueError(f"question {group.question.id}: a source was resampled twice, its prefix would get two signals")
        for i, (rollout, advantage) in enumerate(zip(group.rollouts, group_advantages(rewards, baseline, eps), strict=True)):
            resample = resamples.get(i)
            if resample is None:
                items.append(_item(group.question, rollout, float(advantage), rollout.policy_mask, weight))
                continue
            _check(rollout, resample, tokens)
            rewards_K = Group(group.question, resample.continuations, group.worker).rewards
            rewards_prefix = rewards.copy()
            rewards_prefix[i] = rewards_K.max()
            prefix = np.arange(len(rollout.response_ids)) < resample.prefix_tokens
            advantage = group_advantages(rewards_prefix, baseline, eps)[i]
            items.append(_item(group.question, rollout, float(advantage), rollout.policy_mask & prefix, weight))
            for continuation, advantage_k in zip(resample.continuations, group_advantages(rewards_K, baseline, eps), strict=True):
                after = np.arange(len(continuation.response_ids)) >= resample.prefix_tokens
                items.append(_item(group.question, continuation, float(advantage_k), continuation.policy_mask & after, weight))
    return [item for item in items if item.mask.any()]


def informative(group: Group) -> bool:
    """Whether `credit` gives any token of a group an advantage: not all its rollouts and continuations have one reward."""
    continuations = [t.reward for resample in group.resamples for t in resample.continuations]
    return len({*group.rewards.tolist(), *continuations}) > 1


def sft_items(pairs: Sequence[tuple[Question, Trajectory]]) -> list[TrainItem]:
    """Supervised items on all policy tokens, weighted so that the summed loss is the mean over the batch's tokens."""
    tokens = [int(trajectory.policy_mask.sum()) for _, trajectory in pairs]
    return [_item(question, t, 1.0, t.policy_mask, n / sum(tokens)) for (question, t), n in zip(pairs, tokens, strict=True) if n]


def _item(question: Question, trajectory: Trajectory, advantage: float, mask: NDArray[np.bool_], weight: float) -> TrainItem:
    return TrainItem(question, trajectory, np.where(mask, advantage, 0.0).astype(np.float32), mask, weight)


def _check(source: Trajectory, resample: Resample, tokens: SpecialTokens) -> None:
    where = f"rollout {source.rollout} of question {source.question_id}"
    if resample.prefix_tokens - 1 not in {start for start, _ in tool_call_spans(source, tokens)}:
        raise ValueError(f"{where}: a prefix of {resample.prefix_tokens} tokens does not end with the opening tag of a tool call")
    prefix = source.response_ids[: resample.prefix_tokens]
    for k, continuation in enumerate(resample.continuations):
        if not np.array_equal(continuation.response_ids[: resample.prefix_tokens], prefix):
            raise ValueError(f"{where}: continuation {k} does not start with its source's prefix")
