"""Credit against numbers worked out by hand: (r - mean) / (population std + 1e-6)."""

import dataclasses

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.credit import Carried, TrainItem, Update, credit, informative, sft_items
from learner.loss import TrainedTokens, policy_loss
from learner.objectives import objectives
from resampler.places import FirstCall
from rollout_workers.trajectory import ForkPoint, Resample, uses_tools
from tests.learner.helpers import DIRECT, QUESTION, TOOL, TOOL_PREFIX, group, resample, trajectory
from tests.tokens import TOKENS

EPS = 1e-6
STD = np.sqrt(3) / 4  # of one in four
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
    assert [advantage(i) for i in items] == pytest.approx(
        [0.75 / (std + EPS)] + 3 * [-0.25 / (std + EPS)]
    )
    assert [i.weight for i in items] == [1 / 4] * 4


def test_weight_is_one_over_rollouts_times_questions():
    items = credit(
        [
            group([(DIRECT, 1), (DIRECT, 0)]),
            group([(DIRECT, 1), (DIRECT, 1), (DIRECT, 0), (DIRECT, 0)]),
        ],
        TOKENS,
    )
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
    # Source 0: rewards with its own replaced are 1 0 0 0 -> (1 - 1/4) / (sqrt(3)/4).
    # The others keep 0 0 0 0 -> 0.
    items = credit(
        [group([(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 0)], [resample(0, [1, 0, 0, 0])])],
        TOKENS,
    )
    prefix, *continuations, second, third, fourth = items
    assert trained(prefix) == [20, 21, 4, 5]
    assert advantage(prefix) == pytest.approx(0.75 / (np.sqrt(3) / 4 + EPS))
    assert [advantage(i) for i in (second, third, fourth)] == [0, 0, 0]
    assert len(continuations) == 4
    assert [advantage(i) for i in continuations] == pytest.approx(
        [0.75 / (np.sqrt(3) / 4 + EPS)] + 3 * [-0.25 / (np.sqrt(3) / 4 + EPS)]
    )
    assert trained(continuations[0]) == [22, 6, 2, 23, 4, 24, 2]
    assert trained(continuations[2]) == [40, 40, 22, 6, 2, 23, 4, 24, 2]
    assert [i.weight for i in items] == [1 / 4] * 8  # 1/(N B), not diluted by the K continuations


def test_right_no_tool_siblings():
    # Original rewards 0 0 1 1: the unselected keep mean 1/2, std 1/2.
    # Recovered source: 1 0 1 1, mean 3/4, std sqrt(3)/4.
    items = credit(
        [group([(TOOL, 0), (TOOL, 0), (DIRECT, 1), (DIRECT, 1)], [resample(0, [0, 1])])], TOKENS
    )
    assert advantage(items[0]) == pytest.approx(0.25 / (np.sqrt(3) / 4 + EPS))
    assert [advantage(i) for i in items[1:3]] == pytest.approx([-HALF, HALF])
    assert [advantage(i) for i in items[3:]] == pytest.approx([-HALF, HALF, HALF])


def test_two_selected_sources_are_each_computed_against_the_original_rewards():
    # Source 0 recovered: 1 0 0 1 -> mean 1/2, std 1/2 -> +1.
    # Source 1 did not: 0 0 0 1 -> mean 1/4, std sqrt(3)/4 -> -1/sqrt(3).
    # Had source 1 seen source 0's replaced reward, it would be -1.
    rollouts = [(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 1)]
    items = credit([group(rollouts, [resample(0, [1, 0]), resample(1, [0, 0])])], TOKENS)
    first, _, _, second, fork_a, fork_b, third, fourth = items
    std = np.sqrt(3) / 4
    assert advantage(first) == pytest.approx(HALF)
    assert advantage(second) == pytest.approx(-0.25 / (std + EPS))
    assert [advantage(fork_a), advantage(fork_b)] == [0, 0]
    assert [advantage(third), advantage(fourth)] == pytest.approx(
        [-0.25 / (std + EPS), 0.75 / (std + EPS)]
    )


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
    made = group(
        [(TOOL, r) for r in rewards], [resample(source, r) for source, r in enumerate(resamples)]
    )
    assert informative(made) == expected
    assert any(item.advantages.any() for item in credit([made], TOKENS)) == expected


def test_a_turn_that_opens_outside_thinking_is_forked_and_credited_from_its_first_token():
    tokens = dataclasses.replace(TOKENS, opens_thinking=False)
    # <tool_call> 22 </tool_call> end of turn, an observation, the answer 24
    call = ((5, 22, 6, 2), (30, 31), (24, 2))
    (point,) = FirstCall().points(trajectory(call, 0), tokens)
    assert point == (1, (0, 3))
    # The source's reward replaced by its best continuation's: 1 0 -> +1 on the <tool_call>.
    items = credit([group([(call, 0), (((21, 2),), 0)], [resample(0, [1, 0], call, 1)])], tokens)
    assert [trained(item) for item in items] == [
        [5],
        [22, 6, 2, 24, 2],
        [40, 22, 6, 2, 24, 2],
        [21, 2],
    ]
    assert [advantage(item) for item in items] == pytest.approx([HALF, HALF, -HALF, 0])


def test_a_literal_tag_inside_thinking_is_no_call():
    literal = ((20, 5, 21, 6, 4, 22, 2),)
    assert not uses_tools(trajectory(literal, 0), TOKENS)
    # followed by a real call, the prefix runs through the literal one to the real tag
    both = ((20, 5, 21, 4, 5, 22, 6, 2), *TOOL[1:])
    (point,) = FirstCall().points(trajectory(both, 0), TOKENS)
    prefix = point.prefix_tokens
    assert prefix == 5
    item = credit([group([(both, 0), (DIRECT, 0)], [resample(0, [1, 0], both, prefix)])], TOKENS)[0]
    assert trained(item) == [20, 5, 21, 4, 5]


def test_no_token_gets_two_signals():
    # Continuations share their source's prefix tokens by value; each stream trains only its own
    # side of the fork point.
    items = credit([group([(TOOL, 0), (DIRECT, 1)], [resample(0, [1, 0])])], TOKENS)
    source, *forks, _ = items
    assert source.mask.tolist() == [i < TOOL_PREFIX for i in range(13)]
    for fork in forks:
        assert not fork.mask[:TOOL_PREFIX].any()
        assert (fork.mask[TOOL_PREFIX:] == fork.trajectory.policy_mask[TOOL_PREFIX:]).all()
    with pytest.raises(ValueError, match="two signals"):
        credit(
            [group([(TOOL, 0), (DIRECT, 1)], [resample(0, [1, 0]), resample(0, [0, 0])])], TOKENS
        )


def test_a_continuation_must_start_with_its_sources_prefix():
    other = dataclasses.replace(
        resample(0, [1, 0]),
        continuations=resample(0, [1, 0], ((25, *TOOL[0][1:]), *TOOL[1:])).continuations,
    )
    with pytest.raises(ValueError, match="continuation 0 does not start"):
        credit([group([(TOOL, 0), (DIRECT, 1)], [other])], TOKENS)


def test_an_unscored_rollout_is_refused_and_an_empty_one_is_no_item():
    with pytest.raises(ValueError, match="no reward"):
        credit([group([(DIRECT, None), (DIRECT, 1)])], TOKENS)
    items = credit([group([((), 0), (DIRECT, 1)])], TOKENS)
    assert len(items) == 1
    assert advantage(items[0]) == pytest.approx(HALF)
    assert items[0].weight == 1 / 2


def test_continuations_from_the_prompt_leave_their_source_a_rollout_like_any_other():
    # The same four plain advantages as without resampling; the two from the prompt train whole:
    # right +1, wrong -1.
    rollouts = [(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 1)]
    plain = credit([group(rollouts)], TOKENS)
    source, right, wrong, *others = credit(
        [group(rollouts, [resample(0, [1, 0], DIRECT, 0)])], TOKENS
    )
    assert [(advantage(i), trained(i)) for i in (source, *others)] == [
        (advantage(i), trained(i)) for i in plain
    ]
    assert [advantage(i) for i in (right, wrong)] == pytest.approx([HALF, -HALF])
    assert [trained(right), trained(wrong)] == [[20, 4, 21, 2], [40, 20, 4, 21, 2]]


def test_continuations_of_an_answer_credit_the_thinking():
    # DIRECT is forked after its </think>. Rewards with its own replaced: 1 0 -> +1 on 20 </think>.
    prefix, right, _, _ = credit(
        [group([(DIRECT, 0), (TOOL, 0)], [resample(0, [1, 0], DIRECT, 2)])], TOKENS
    )
    assert (advantage(prefix), trained(prefix)) == (pytest.approx(HALF), [20, 4])
    assert (advantage(right), trained(right)) == (pytest.approx(HALF), [21, 2])


def test_without_prefix_credit_the_prefix_trains_nothing_and_all_else_stays():
    batch = [group([(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 1)], [resample(0, [1, 0])])]
    prefix, *with_credit = credit(batch, TOKENS)
    without = credit(batch, TOKENS, LearnerConfig(credit={"prefix": False}))
    assert trained(prefix) == [20, 21, 4, 5]
    assert [(advantage(i), trained(i), i.weight) for i in without] == [
        (advantage(i), trained(i), i.weight) for i in with_credit
    ]


def test_joined_resamples_are_one_group_with_the_rollouts():
    # 0 1 and the continuations' 1 0 0 0: mean 1/3, population std sqrt(2)/3: right +sqrt 2,
    # wrong -1/sqrt 2. The source's prefix is shared by itself (wrong) and 1 right, 3 wrong:
    # (sqrt 2 - 4/sqrt 2) / 5 = -sqrt(2)/5.
    *forks, source, other = credit(
        [group([(TOOL, 0), (DIRECT, 1)], [resample(0, [1, 0, 0, 0])])],
        TOKENS,
        LearnerConfig(credit={"joined": True}),
    )
    root = np.sqrt(2)
    assert [advantage(i) for i in forks] == pytest.approx([root] + 3 * [-1 / root], rel=1e-5)
    # Shared tokens are trained once, with the source.
    assert trained(forks[0]) == [22, 6, 2, 23, 4, 24, 2]
    assert trained(source) == [20, 21, 4, 5, 22, 6, 2, 23, 4, 24, 2]
    assert source.advantages[:4].tolist() == pytest.approx([-root / 5] * 4, rel=1e-5)
    assert source.advantages[source.mask][4:].tolist() == pytest.approx([-1 / root] * 7, rel=1e-5)
    assert advantage(other) == pytest.approx(root, rel=1e-5)
    assert [i.weight for i in (*forks, source, other)] == [1 / 6] * 6


def test_joined_changes_nothing_without_resamples():
    batch = [group([(TOOL, 0), (DIRECT, 1)])]
    joined = credit(batch, TOKENS, LearnerConfig(credit={"joined": True}))
    assert [(advantage(i), i.weight) for i in joined] == [
        (advantage(i), i.weight) for i in credit(batch, TOKENS)
    ]


def test_a_better_continuation_lifts_a_graded_outcome_and_a_worse_one_does_not_lower_it():
    # Source 0.5 beside 0: continuations up to 1 -> (1, 0) -> +1; up to 0.25 -> (0.5, 0) -> +1, the
    # source's own. The std is half of it.
    for best, std in ((1.0, 0.5), (0.25, 0.25)):
        prefix = credit([group([(TOOL, 0.5), (DIRECT, 0)], [resample(0, [best, 0])])], TOKENS)[0]
        assert advantage(prefix) == pytest.approx(std / (std + EPS))


@pytest.mark.parametrize("bonus", [0.5, -0.5])
def test_a_tool_bonus_shifts_the_reward_of_calling_rollouts_and_nothing_else(bonus):
    # Rewards 1 (no tool) and 0 + bonus: mean (1 + bonus) / 2, std (1 - bonus) / 2: still -1 and +1.
    # At equal outcomes the bonus decides.
    batch = [group([(TOOL, 0), (DIRECT, 1)]), group([(TOOL, 1), (DIRECT, 1)])]
    items = credit(batch, TOKENS, LearnerConfig(credit={"tool_bonus": bonus}))
    plain = credit(batch, TOKENS)
    sign = np.sign(bonus)
    assert [advantage(i) for i in items] == pytest.approx([-1, 1, sign, -sign], rel=1e-4)
    assert [(trained(i), i.weight) for i in items] == [(trained(i), i.weight) for i in plain]
    centered = credit(
        batch, TOKENS, LearnerConfig(credit={"tool_bonus": bonus, "baseline": "centered"})
    )
    assert [advantage(i) for i in centered] == pytest.approx(
        [(bonus - 1) / 2, (1 - bonus) / 2, bonus / 2, -bonus / 2]
    )
    # The verified outcomes stay.
    assert [t.reward for g in batch for t in g.rollouts] == [0, 1, 1, 1]


# Two calls: prefixes of 3 and 9 tokens.
TWICE = ((20, 4, 5, 22, 6, 2), (30,), (4, 5, 25, 6, 2), (31,), (4, 24, 2))


def second_call(rewards) -> Resample:
    turn = TWICE[2]
    continuations = []
    for k, reward in enumerate(rewards):
        parts = (*TWICE[:2], (*turn[:2], *[40] * k, *turn[2:]), *TWICE[3:])
        continuations.append(trajectory(parts, reward, fork=ForkPoint(0, k, 9)))
    return Resample(0, 9, tuple(continuations))


@pytest.mark.parametrize(
    ("first", "second", "until_3", "until_9"),
    [
        ([1, 0], [0, 0], HALF, 0),  # only a fork before the second call succeeded
        ([0, 0], [1, 0], HALF, HALF),  # the second call's success passes through the first's prefix
    ],
)
def test_a_source_forked_at_two_calls_is_credited_piece_by_piece(first, second, until_3, until_9):
    rollouts = [(TWICE, 0), (DIRECT, 0)]
    items = credit([group(rollouts, [resample(0, first, TWICE, 3), second_call(second)])], TOKENS)
    source = items[0]
    assert trained(source) == [20, 4, 5, 22, 6, 2, 4, 5]
    assert source.advantages[:9].tolist() == pytest.approx(
        [until_3] * 3 + [until_9] * 3 + [0] + [until_9] * 2
    )
    longer, shorter = items[1], items[3]
    assert trained(longer) == [25, 6, 2, 4, 24, 2]
    assert trained(shorter) == [22, 6, 2, 4, 5, 25, 6, 2, 4, 24, 2]


@pytest.mark.parametrize(
    ("objective", "lifted", "right", "wrong"),
    [
        # Prefix: 1 among 1 0 0 0. Continuations: 1 0 0 0.
        ("clip", 0.75 / STD, 0.75 / STD, -0.25 / STD),
        ("gspo", 0.75 / STD, 0.75 / STD, -0.25 / STD),
        ("cispo", 0.75 / STD, 0.75 / STD, -0.25 / STD),
        ({"name": "dr_grpo", "loss_length": 8}, 0.75, 0.75, -0.25),  # not divided by the std
        ({"name": "rloo", "loss_length": 8}, 1.0, 1.0, -1 / 3),  # the mean of the other three
    ],
)
def test_the_streams_under_every_baseline(objective, lifted, right, wrong):
    batch = [group([(TOOL, 0), (TOOL, 0), (DIRECT, 0), (DIRECT, 0)], [resample(0, [1, 0, 0, 0])])]
    prefix, *forks, second, third, fourth = credit(
        batch, TOKENS, LearnerConfig(objective=objective)
    )
    assert advantage(prefix) == pytest.approx(lifted, rel=1e-5)
    assert [advantage(i) for i in forks] == pytest.approx([right, wrong, wrong, wrong], rel=1e-5)
    assert [advantage(i) for i in (second, third, fourth)] == [0, 0, 0]
    assert trained(prefix) == [20, 21, 4, 5]


@pytest.mark.parametrize(
    ("objective", "gradients"),
    [
        # rho is e on the prefix's first token and 1 on its other three, and e on the first token of
        # a wrong continuation. A = 1 and -1, w = 1.
        ("clip", [0, -1, -1, -1, np.e]),  # what would gain beyond 1.4 is clipped token by token
        ({"name": "rloo", "loss_length": 1}, [-np.e, -1, -1, -1, np.e]),  # nothing is clipped
        ("cispo", [-1.4, -1, -1, -1, 1.4]),  # the ratio is bounded, no token loses its gradient
        (
            {"name": "gspo", "clip_high": 0.2},
            [0, 0, 0, 0, np.e],
        ),  # the prefix is a sequence of its own: e^(1/4) > 1 + 0.2, clipped whole
    ],
)
def test_the_streams_under_every_surrogate(objective, gradients):
    logprobs = torch.tensor([1.0, 0, 0, 0, 1.0], requires_grad=True)
    tokens = TrainedTokens(
        logprobs=logprobs,
        old=torch.zeros(5),
        advantages=torch.tensor([1.0, 1, 1, 1, -1]),
        weights=torch.ones(5),
        items=torch.tensor([0, 0, 0, 0, 1]),
        correction=torch.ones(5),
    )
    policy_loss(tokens, objectives.parse(objective), kl_beta=0).loss.backward()
    assert logprobs.grad.tolist() == pytest.approx(gradients, rel=1e-5)


def test_sft_weights_make_the_loss_a_mean_over_tokens():
    items = sft_items([(QUESTION, trajectory(DIRECT, None)), (QUESTION, trajectory(TOOL, None))])
    assert [i.weight for i in items] == [4 / 15, 11 / 15]
    assert [trained(i) for i in items] == [[20, 4, 21, 2], [20, 21, 4, 5, 22, 6, 2, 23, 4, 24, 2]]


def by_entry(items):
    """Return what each item trains, by its rollout and fork."""
    found = {}
    for item in items:
        key = item.trajectory.rollout, item.trajectory.fork
        assert key not in found  # no rollout and no continuation is trained twice
        found[key] = item.mask.tolist(), item.advantages.tolist(), item.weight
    return found


@pytest.mark.parametrize("settings", [{}, {"prefix": False}, {"baseline": "leave_one_out"}])
def test_what_is_carried_is_trained_later_with_the_same_values(settings):
    config = LearnerConfig(credit=settings)
    rollouts = [(TOOL, 0), (TOOL, 0), (DIRECT, 1), (DIRECT, 0)]
    whole = group(rollouts, [resample(0, [1, 0, 0, 0]), resample(1, [0, 0])])
    other = group([(DIRECT, 1), (DIRECT, 0)])
    at_once = by_entry(credit([whole], TOKENS, config))

    # When the batch is trained, nothing is known of the forks.
    now = credit([dataclasses.replace(whole, resamples=(), carried=(0, 1))], TOKENS, config)
    assert sorted(by_entry(now)) == [(2, None), (3, None)]
    # The next batch is of another size. What it carries weighs as in its own batch of one.
    late = Carried(dataclasses.replace(whole, carried=(0, 1)), Update(step=0, groups=1))
    items = credit([other, other], TOKENS, config, [late])
    assert [item.weight for item in items[:4]] == [1 / 4] * 4
    assert by_entry(now + items[4:]) == at_once


def test_a_source_whose_fork_was_dropped_is_trained_late_and_whole():
    # Rewards 0 0 1: mean 1/3, population std sqrt(2)/3.
    dropped = group([(TOOL, 0), (TOOL, 0), (DIRECT, 1)])
    late = Carried(dataclasses.replace(dropped, carried=(1,)), Update(step=3, groups=2))
    (item,) = credit([], TOKENS, carried=[late])
    assert item.trajectory.rollout == 1
    assert trained(item) == [20, 21, 4, 5, 22, 6, 2, 23, 4, 24, 2]
    assert advantage(item) == pytest.approx(-1 / 3 / (np.sqrt(2) / 3 + EPS))
    assert item.weight == 1 / (3 * 2)


def test_a_group_with_forks_under_way_may_still_teach():
    alike = group([(TOOL, 0), (DIRECT, 0)])
    assert not informative(alike)
    assert informative(dataclasses.replace(alike, carried=(0,)))


def test_rollouts_that_join_a_group_cannot_be_carried():
    carried = dataclasses.replace(group([(TOOL, 0), (DIRECT, 0)]), carried=(0,))
    with pytest.raises(ValueError, match="carried rollouts cannot join a group"):
        credit([carried], TOKENS, LearnerConfig(credit={"joined": True}))
