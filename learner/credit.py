"""Credit: the verified outcomes of groups become advantages on tokens (docs/method.md, rule 5).

There are three streams, and no token is in two of them:

    every other rollout i        A_i = (r_i - mean_N) / (std_N + eps)
                                 on its policy tokens
    prefix of a selected source  A_prefix = (r_prefix - mean) / (std + eps)
                                 on its policy tokens up to the fork point; mean and std are over
                                 the group's rewards with the source's own replaced by
                                 r_prefix = max(r_source, max_k r_k)
    continuation k of K          A_k = (r_k - mean_K) / (std_K + eps)
                                 on its policy tokens after the prefix

The source's own continuation trains nothing. Each entry weighs 1 / (N * B), so a selected source
adds 1 + K entries and dilutes no other. std is the population's. With rewards of 0 and 1, r_prefix
is 1 iff any continuation is right. This is the baseline "group"; others stand in
`learner.baselines`, and every stream uses the same one.

With `resampler.schedule: carry` the second and third stream of a group come one update later than
the first (`Carried`): its continuations are not there yet. The values and weights are the same.

If a source is forked at several places, the tokens up to a fork point are credited with all the
continuations that share them. A source that is forked at the prompt shares nothing with its
continuations: it is one of the other rollouts.

Two ablations change the streams:

    joined        A question's N rollouts and M continuations are one group. Advantages are
                  (r - mean) / (std + eps) over its N + M rewards, entries weigh 1 / ((N + M) * B),
                  and a source trains whole. Tokens that several of the N + M share are trained
                  once, with the mean of their advantages: what ARPO does with its branches
                  (arXiv 2507.19849, hard advantages).
    prefix=False  The second stream trains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.baselines import Baseline, Rewards
from learner.config import LearnerConfig
from rollout_workers.trajectory import (
    Floats,
    Group,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    rewards_of,
    uses_tools,
)


@dataclass(frozen=True)
class TrainItem:
    """One entry of the loss: weight * mean of the token loss over the tokens under the mask."""

    question: Question
    trajectory: Trajectory
    advantages: Floats  # [R], 0 where mask is False
    mask: NDArray[np.bool_]  # [R], True on trained tokens
    weight: float


class Update(NamedTuple):
    """The update that trains a batch."""

    step: int  # counted from 0
    groups: int  # of the batch (B)


@dataclass(frozen=True)
class Carried:
    """A group that is trained, but for the sources that it carries (`group.carried`)."""

    group: Group  # with its resamples
    trained: Update  # what trained the rest of it


@dataclass(frozen=True)
class _Entry:
    """A trajectory, the advantage of each of its R tokens, and which of them are trained."""

    trajectory: Trajectory
    advantages: NDArray[np.float64]  # [R]
    mask: NDArray[np.bool_]  # [R]


@dataclass(frozen=True)
class _Rewards:
    """The shaped rewards of a group."""

    rollouts: Rewards  # [N]
    continuations: list[Rewards]  # [K] for each resample of the group

    @property
    def count(self) -> int:
        """N + M: rollouts and continuations."""
        return len(self.rollouts) + sum(len(rewards_K) for rewards_K in self.continuations)


def credit(
    groups: Sequence[Group],
    tokens: SpecialTokens,
    config: LearnerConfig = LearnerConfig(),
    carried: Sequence[Carried] = (),
) -> list[TrainItem]:
    """Return the train items of a batch. Without resamples this is plain GRPO.

    Args:
        groups: the B groups of the batch. Rollouts that a group carries are left out.
        tokens: the model's special tokens; they say which rollouts call a tool.
        config: its `credit` section, and its objective for the baseline.
        carried: groups of earlier batches. Of these only what was left out is trained: the sources
            and their continuations.

    Returns:
        Items with at least one trained token.

    Raises:
        ValueError: a rollout has no reward, a source was resampled twice at one place, a
            continuation does not start with its source's prefix, or a group that carries rollouts
            is credited jointly.
    """
    items: list[TrainItem] = []
    for group in groups:
        everyone = range(len(group.rollouts))
        now = [rollout for rollout in everyone if rollout not in group.carried]
        items += _items(group, now, len(groups), tokens, config)
    for late in carried:
        items += _items(late.group, late.group.carried, late.trained.groups, tokens, config)
    # An item that trains nothing has no mean over its trained tokens.
    return [item for item in items if item.mask.any()]


def shaped_rewards(
    trajectories: Sequence[Trajectory], tokens: SpecialTokens, tool_bonus: float
) -> Rewards:
    """Return the rewards that credit is computed from.

    Args:
        trajectories: N verified rollouts or continuations.
        tokens: the model's special tokens.
        tool_bonus: added to the verified outcome of those that call a tool.

    Returns:
        Rewards, shape [N].

    Raises:
        ValueError: a trajectory has no outcome.
    """
    rewards = rewards_of(trajectories)
    # Nearly always, and finding the calls took nine tenths of the time of credit.
    if tool_bonus == 0:
        return rewards
    calls = np.array([uses_tools(trajectory, tokens) for trajectory in trajectories])
    return rewards + tool_bonus * calls


def informative(group: Group) -> bool:
    """Return whether the verified outcomes of a group differ; a tool bonus does not count.

    A group with forks under way counts: their outcomes may differ.
    """
    if group.carried:
        return True
    outcomes = set(group.rewards.tolist())
    for resample in group.resamples:
        outcomes |= {continuation.reward for continuation in resample.continuations}
    return len(outcomes) > 1


def sft_items(pairs: Sequence[tuple[Question, Trajectory]]) -> list[TrainItem]:
    """Return supervised items on all policy tokens.

    They are weighted so that the summed loss is the mean over the batch's tokens.
    """
    lengths = [int(trajectory.policy_mask.sum()) for _, trajectory in pairs]
    items = []
    for (question, trajectory), length in zip(pairs, lengths, strict=True):
        if length:
            ones = np.ones(len(trajectory.response_ids))
            entry = _Entry(trajectory, ones, trajectory.policy_mask)
            items.append(_item(question, entry, length / sum(lengths)))
    return items


def _items(
    group: Group,
    sources: Collection[int],
    batch_size: int,
    tokens: SpecialTokens,
    config: LearnerConfig,
) -> Iterator[TrainItem]:
    """Yield the items of some rollouts of a group, and of the continuations of these."""
    _check(group)
    settings = config.credit
    baseline = settings.baseline or config.objective.baseline
    rewards = _shaped(group, tokens, settings.tool_bonus)
    if settings.joined:
        if group.carried:
            raise ValueError(f"question {group.question.id}: carried rollouts cannot join a group")
        size = rewards.count
        entries = _joined(group, rewards, baseline)
    else:
        size = len(rewards.rollouts)
        entries = _separate(group, rewards, sources, baseline, prefix=settings.prefix)
    weight = 1.0 / (size * batch_size)
    for entry in entries:
        yield _item(group.question, entry, weight)


def _separate(
    group: Group,
    rewards: _Rewards,
    sources: Collection[int],
    baseline: Baseline,
    *,
    prefix: bool,
) -> Iterator[_Entry]:
    """Yield the entries of some rollouts in three streams; the second needs `prefix`."""
    plain = baseline.advantages(rewards.rollouts)
    for i in sources:
        rollout = group.rollouts[i]
        own = _longest_first(group, i, rewards.continuations)
        advantages = np.full(len(rollout.response_ids), plain[i])
        replaced = rewards.rollouts.copy()
        # From the longest prefix to the shortest: a shorter one is shared by the continuations of
        # the longer ones too, so the best outcome so far goes on with it.
        for resample, rewards_K in own:
            replaced[i] = max(replaced[i], rewards_K.max())
            advantages[: resample.prefix_tokens] = baseline.advantages(replaced)[i]
        frozen = own[0][0].prefix_tokens if own else 0
        yield _Entry(rollout, advantages, _source_mask(rollout, frozen, prefix=prefix))
        for resample, rewards_K in own:
            yield from _continuations(resample, baseline.advantages(rewards_K))


def _source_mask(rollout: Trajectory, frozen: int, *, prefix: bool) -> NDArray[np.bool_]:
    """Return which tokens of a rollout train whose longest prefix has `frozen` tokens."""
    if frozen == 0:
        return rollout.policy_mask
    if not prefix:
        return np.zeros_like(rollout.policy_mask)
    return rollout.policy_mask & ~_after(rollout, frozen)


def _joined(group: Group, rewards: _Rewards, baseline: Baseline) -> Iterator[_Entry]:
    """Yield the entries of one group of N + M."""
    together = baseline.advantages(np.concatenate([rewards.rollouts, *rewards.continuations]))
    # Back to the rollouts and the continuations of each resample.
    sizes = [len(rewards.rollouts), *map(len, rewards.continuations)]
    advantages_N, *advantages_K = np.split(together, np.cumsum(sizes)[:-1])
    for i, rollout in enumerate(group.rollouts):
        advantages = np.full(len(rollout.response_ids), advantages_N[i])
        # From the longest prefix to the shortest, the members that share it become more.
        sharing = [advantages_N[i]]
        for resample, after in _longest_first(group, i, advantages_K):
            sharing += list(after)
            advantages[: resample.prefix_tokens] = np.mean(sharing)
            yield from _continuations(resample, after)
        yield _Entry(rollout, advantages, rollout.policy_mask)


def _continuations(resample: Resample, advantages_K: Rewards) -> Iterator[_Entry]:
    """Yield the entries of the third stream."""
    for continuation, advantage in zip(resample.continuations, advantages_K, strict=True):
        mask = continuation.policy_mask & _after(continuation, resample.prefix_tokens)
        yield _Entry(continuation, np.full(len(mask), advantage), mask)


def _longest_first(
    group: Group, source: int, values: Sequence[Rewards]
) -> list[tuple[Resample, Rewards]]:
    """Return the resamples of a source, longest prefix first, each with its entry of `values`."""
    paired = zip(group.resamples, values, strict=True)
    own = [(resample, value) for resample, value in paired if resample.source == source]
    own.sort(key=_prefix_tokens, reverse=True)
    return own


def _prefix_tokens(pair: tuple[Resample, Rewards]) -> int:
    return pair[0].prefix_tokens


def _after(trajectory: Trajectory, position: int) -> NDArray[np.bool_]:
    return np.arange(len(trajectory.response_ids)) >= position


def _shaped(group: Group, tokens: SpecialTokens, tool_bonus: float) -> _Rewards:
    continuations = [
        shaped_rewards(resample.continuations, tokens, tool_bonus) for resample in group.resamples
    ]
    return _Rewards(shaped_rewards(group.rollouts, tokens, tool_bonus), continuations)


def _item(question: Question, entry: _Entry, weight: float) -> TrainItem:
    advantages = np.where(entry.mask, entry.advantages, 0.0).astype(np.float32)
    return TrainItem(question, entry.trajectory, advantages, entry.mask, weight)


def _check(group: Group) -> None:
    seen = set()
    for resample in group.resamples:
        source, cut = group.rollouts[resample.source], resample.prefix_tokens
        name = f"rollout {source.rollout} of question {source.question_id}"
        if (resample.source, cut) in seen:
            raise ValueError(
                f"{name}: resampled twice at token {cut}, its prefix would get two signals"
            )
        seen.add((resample.source, cut))
        prefix = source.response_ids[:cut]
        for k, continuation in enumerate(resample.continuations):
            if not np.array_equal(continuation.response_ids[:cut], prefix):
                raise ValueError(
                    f"{name}: continuation {k} does not start with its source's prefix"
                )
