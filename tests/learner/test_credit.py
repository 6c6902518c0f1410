"""Credit against numbers worked out by hand: (r - mean) / (population std + 1e-6)."""

import dataclasses

import numpy as np
import pytest

from learner.credit import TrainItem, credit, informative, sft_items
from rollout_workers.trajectory import Resample, fork_prefix_tokens, uses_tools
from tests.learner.helpers import DIRECT, QUESTION, TOKENS, TOOL, TOOL_PREFIX, group, resample, trajectory

EPS = 1e-6
HALF = 0.5 / (0.5 + EPS)  # one of two right: mean 1/2, std 1/2


def advantage(item: TrainItem) -> float:
    """The one advantage on the item's trained tokens; everything else is 0."""
    assert not item.advantages[~item.mask].any()
    values = set(item.advantages[item.mask].tolist())
    assert len(values) == 1
    return values.pop()


def trained(item: TrainItem) -> list[int]:
    return item.trajectory.response_ids[item.mask].tolist()


def test_plain_grpo_is_normalised_with_the_population_std():
    # rewards 1 0 0 0: mean 1/4, population std sqrt(3)/4; sample std would be 1/2
    items = credit([group([(DIRECT, 1), (DIRECT, 0), (DIRECT, 0), (DIRECT, 0)])], TOKENS)
    std = np.sqrt(3) / 4
    assert [advantage(i) for i in items] == pytest.approx([0.75 / (std + EPS)] + 3 * [-0.25 / (std + EPS)])
    assert [i.weight for i in items] == [1 / 4] * 4


def test_weight_is_one_over_rollouts_times_questions():
    items = credit([group([(DIRECT, 1), (DIRECT, 0)]), group([(DIRECT, 1), (DIRECT, 1), (DIRECT, 0), (DIRECT, 0)])], TOKENS)
    assert [i.weight for i in items] == [1 / 4] * 2 + [1 / 8] * 4


def test_a_group_without_tools_trains_every_policy_token_and_no_other():
    items = credit([group([(DIRECT, 1), (DIRECT, 0)])], TOKENS)
    assert [advantage(i) for i in items] == pytest.approx([HALF, -HALF])
    assert [trained(i) for i in items] == [[20, 4, 21, 2]] * 2


def test_observations_are_never_trained_on():
    (item, _) = credit([group([(TOOL, 1), (DIRECT, 0)])], TOKENS)
    assert trained(item) == [20, 21, 4, 5, 22, 6, 2, 23, 4, 24, 2]


def test_all_wrong_group_has_no_signal_without_a_resample():
    items = credit([group([(TOOL, 0), (DIRECT, 0)])], TOKENS)
    assert [advantage(i) for i in items] == [0, 0]


def test_all_wrong_group_with_a_recovered_prefix():
    # source 0: rewards with its own replaced are 1 0 0 0 -> (1 - 1/4) / (sqrt(3)/4); the others keep 0 0 0 0 -> 0
    items = credit([group([(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 0)], [resample(0, [1, 0, 0, 0])])], TOKENS)
    prefix, *continuations, second, third, fourth = items
    assert trained(prefix) == [20, 21, 4, 5]
    assert advantage(prefix) == pytest.approx(0.75 / (np.sqrt(3) / 4 + EPS))
    assert [advantage(i) for i in (second, third, fourth)] == [0, 0, 0]
    assert len(continuations) == 4
    assert [advantage(i) for i in continuations] == pytest.approx([0.75 / (np.sqrt(3) / 4 + EPS)] + 3 * [-0.25 / (np.sqrt(3) / 4 + EPS)])
    assert trained(continuations[0]) == [22, 6, 2, 23, 4, 24, 2]
    assert trained(continuations[2]) == [40, 40, 22, 6, 2, 23, 4, 24, 2]
    assert [i.weight for i in items] == [1 / 4] * 8  # 1/(N B), not diluted by the K continuations


def test_right_no_tool_siblings():
    # original rewards 0 0 1 1: the unselected keep mean 1/2, std 1/2. Recovered source: 1 0 1 1, mean 3/4, std sqrt(3)/4
    items = credit([group([(TOOL, 0), (TOOL, 0), (DIRECT, 1), (DIRECT, 1)], [resample(0, [0, 1])])], TOKENS)
    assert advantage(items[0]) == pytest.approx(0.25 / (np.sqrt(3) / 4 + EPS))
    assert [advantage(i) for i in items[1:3]] == pytest.approx([-HALF, HALF])
    assert [advantage(i) for i in items[3:]] == pytest.approx([-HALF, HALF, HALF])


def test_two_selected_sources_are_each_computed_against_the_original_rewards():
    # source 0 recovered: 1 0 0 1 -> mean 1/2, std 1/2 -> +1. source 1 not: 0 0 0 1 -> mean 1/4, std sqrt(3)/4 -> -1/sqrt(3).
    # Had source 1 seen source 0's replaced reward, it would be -1.
    rollouts = [(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 1)]
    items = credit([group(rollouts, [resample(0, [1, 0]), resample(1, [0, 0])])], TOKENS)
    first, _, _, second, fork_a, fork_b, third, fourth = items
    std = np.sqrt(3) / 4
    assert advantage(first) == pytest.approx(HALF)
    assert advantage(second) == pytest.approx(-0.25 / (std + EPS))
    assert [advantage(fork_a), advantage(fork_b)] == [0, 0]
    assert [advantage(third), advantage(fourth)] == pytest.approx([-0.25 / (std + EPS), 0.75 / (std + EPS)])


def test_all_continuations_wrong_blames_the_prefix_as_grpo_would():
    items = credit([group([(TOOL, 0), (DIRECT, 1)], [resample(0, [0, 0, 0, 0])])], TOKENS)
    assert advantage(items[0]) == pytest.approx(-HALF)
    assert trained(items[0]) == [20, 21, 4, 5]
    assert [advantage(i) for i in items[1:5]] == [0] * 4
    assert advantage(items[5]) == pytest.approx(HALF)


def test_all_continuations_right_credits_the_prefix_alone():
    items = credit([group([(TOOL, 0), (DIRECT, 0)], [resample(0, [1, 1, 1, 1])])], TOKENS)
    assert advantage(items[0]) == pytest.approx(HALF)
    assert [advantage(i) for i in items[1:5]] == [0] * 4


@pytest.mark.parametrize(
    ("rewards", "resamples", "expected"),
    [
        ([1, 1], [], False),
        ([1, 0], [], True),
        ([0, 0], [[0, 0]], False),
        ([0, 0], [[0, 0], [1, 0]], True),
        ([0, 0], [[1, 1]], True),  # the prefix alone has a signal
        ([0.5, 0.5], [], False),
    ],
)
def test_a_group_is_informative_where_credit_gives_it_an_advantage(rewards, resamples, expected):
    made = group([(TOOL, r) for r in rewards], [resample(source, r) for source, r in enumerate(resamples)])
    assert informative(made) == expected
    assert any(item.advantages.any() for item in credit([made], TOKENS)) == expected


def test_a_literal_tag_inside_thinking_is_no_call():
    literal = ((20, 5, 21, 6, 4, 22, 2),)
    assert not uses_tools(trajectory(literal, 0), TOKENS)
    with pytest.raises(ValueError, match=r"rollout 0 of question q.*opening tag"):
        credit([group([(literal, 0), (DIRECT, 0)], [Resample(0, 2, resample(0, [0, 1], literal, 2).continuations)])], TOKENS)
    # followed by a real call, the prefix runs through the literal one to the real tag
    both = ((20, 5, 21, 4, 5, 22, 6, 2), *TOOL[1:])
    prefix = fork_prefix_tokens(trajectory(both, 0), TOKENS)
    assert prefix == 5
    item = credit([group([(both, 0), (DIRECT, 0)], [resample(0, [1, 0], both, prefix)])], TOKENS)[0]
    assert trained(item) == [20, 5, 21, 4, 5]


def test_no_token_gets_two_signals():
    # Continuations share their source's prefix tokens by value; each stream trains only its own side of the fork.
    items = credit([group([(TOOL, 0), (DIRECT, 1)], [resample(0, [1, 0])])], TOKENS)
    source, *forks, _ = items
    assert source.mask.tolist() == [i < TOOL_PREFIX for i in range(13)]
    for fork in forks:
        assert not fork.mask[:TOOL_PREFIX].any()
        assert (fork.mask[TOOL_PREFIX:] == fork.trajectory.policy_mask[TOOL_PREFIX:]).all()
    with pytest.raises(ValueError, match="two signals"):
        credit([group([(TOOL, 0), (DIRECT, 1)], [resample(0, [1, 0]), resample(0, [0, 0])])], TOKENS)


def test_a_continuation_must_start_with_its_sources_prefix():
    other = dataclasses.replace(resample(0, [1, 0]), continuations=resample(0, [1, 0], ((25, *TOOL[0][1:]), *TOOL[1:])).continuations)
    with pytest.raises(ValueError, match="continuation 0 does not start"):
        credit([group([(TOOL, 0), (DIRECT, 1)], [other])], TOKENS)


def test_an_unscored_rollout_is_refused_and_an_empty_one_is_no_item():
    with pytest.raises(ValueError, match="no reward"):
        credit([group([(DIRECT, None), (DIRECT, 1)])], TOKENS)
    items = credit([group([((), 0), (DIRECT, 1)])], TOKENS)
    assert len(items) == 1
    assert advantage(items[0]) == pytest.approx(HALF)
    assert items[0].weight == 1 / 2


def test_sft_weights_make_the_loss_a_mean_over_tokens():
    items = sft_items([(QUESTION, trajectory(DIRECT, None)), (QUESTION, trajectory(TOOL, None))])
    assert [i.weight for i in items] == [4 / 15, 11 / 15]
    assert [trained(i) for i in items] == [[20, 4, 21, 2], [20, 21, 4, 5, 22, 6, 2, 23, 4, 24, 2]]
