"""The shell around the selection: what a finished group leads to."""

import dataclasses

import pytest

from resampler.config import ResamplerConfig
from resampler.online import Decision
from resampler.resampler import Resampler, start_resampler
from rollout_workers.trajectory import EndReason, RolloutStats, Trajectory
from tests.resampler.helpers import calling, direct, group, turns
from tests.tokens import TOKENS


def two_candidates(question: str, first: float, second: float):
    return group(
        question,
        direct(1, 0, question),
        calling(first, rollout=1, question=question),
        calling(second, rollout=2, question=question),
    )


def offers(groups, *, n=8, step=5, **config):
    """What each offer led to: [(place, rollout) of forks], places settled."""
    resampler = Resampler(ResamplerConfig(**{"schedule": "batch"} | config), TOKENS, n)
    decisions = [resampler.offer(g, step, i, len(groups)) for i, g in enumerate(groups)]
    return [
        ([(c.group, c.rollout, c.prefix_tokens) for c in d.forks], list(d.settled))
        for d in decisions
    ]


def test_the_batch_schedule_waits_for_all_and_chooses_as_the_paper_does():
    groups = [two_candidates("a", 0.5, 0.25), group("b", direct(1)), two_candidates("c", 0.75, 0.9)]
    # Budget: floor(0.25 * 3 * 8 / 2) * 2 = 6 rollouts, 3 prefixes: a's 0.25, c's 0.75, then a's 0.5.
    assert offers(groups, k=2) == [
        ([], []),
        ([], []),
        ([(0, 2, 3), (2, 1, 3), (0, 1, 3)], [0, 1, 2]),
    ]


def test_fork_at_changes_where_a_source_is_forked_and_not_which():
    groups = [two_candidates("a", 0.5, 0.25)]
    assert offers(groups, k=2) == [([(0, 2, 3)], [0])]
    assert offers(groups, k=2, fork_at="prompt") == [([(0, 2, 0)], [0])]
    assert offers(groups, k=2, fork_at="answer") == [
        ([], [0])
    ]  # the one rollout without a tool is right


def test_a_threshold_says_which_outcomes_are_failures():
    group_ = group("a", calling(0.5, 0.4), calling(0.25, 0.5, 1))
    assert offers([group_], k=2) == [([], [0])]
    assert offers([group_], k=2, success_above=0.4) == [([], [0])]
    assert offers([group_], k=2, success_above=0.5) == [([(0, 1, 3)], [0])]


def test_every_call_is_a_place_to_fork():
    turn = [(4, 0.1), (5, 0.8), (6, 0.8), (2, 0.9)]
    sure = turns([turn, [70], turn, [70], turn[:1]], 0.0)
    unsure = turns([turn, [70], [(4, 0.1), (5, 0.2), (6, 0.4), (2, 0.9)], [70], turn[:1]], 0.0, 1)
    groups = [group("a", sure, unsure)]
    # n=8, k=2: 8 * ratio / 2 prefixes. First calls: a tie at 0.8, the earlier rollout. All calls: the second of rollout 1, at 0.3, first.
    assert offers(groups, k=2) == [([(0, 0, 2)], [0])]
    assert offers(groups, k=2, fork_at="every_call") == [([(0, 1, 7)], [0])]
    assert offers(groups, k=2, fork_at="every_call", budget_ratio=1)[0][0] == [
        (0, 1, 7),
        (0, 0, 2),
        (0, 0, 7),
        (0, 1, 2),
    ]


def test_an_adaptive_budget_follows_the_recovery_rate():
    resampler = Resampler(
        ResamplerConfig(k=2, schedule="batch", target_recovery=0.5, budget_ratio=1), TOKENS, 8
    )

    def forks(step):
        return len(
            resampler.offer(
                group("a", *(calling(0.5, rollout=i) for i in range(4))), step, 0, 1
            ).forks
        )

    assert forks(0) == 4  # nothing measured: floor(1 * 8 / 2) = 4, the whole budget
    for recovered in (True, False, False, False):
        resampler.learn(recovered)
    assert forks(1) == 2  # 1/4 is half of the target
    for _ in range(64):
        resampler.learn(False)
    assert forks(2) == 1  # never none, or the rate would be measured no more


def test_an_adaptive_budget_follows_the_cost_of_tools():
    resampler = Resampler(
        ResamplerConfig(k=2, schedule="batch", target_cost_s=1.0, budget_ratio=1), TOKENS, 8
    )

    def forks(step, *tools):
        called = [
            dataclasses.replace(calling(0.5, rollout=i), stats=RolloutStats(tools=(tool,)))
            for i, tool in enumerate(tools)
        ]
        return [
            candidate.rollout
            for candidate in resampler.offer(group("a", *called), step, 0, 1).forks
        ]

    assert forks(0, "search", "search", "zoom", "search") == [
        0,
        1,
        2,
        3,
    ]  # nothing measured: floor(1 * 8 / 2) = 4, the whole budget
    resampler.learn(False, "search", 2.0)
    resampler.learn(False, "zoom", 0.1)
    assert forks(1, "search", "search", "search", "search") == [0, 1]  # each counts for two
    assert forks(2, "search", "zoom", "search", "zoom") == [
        0,
        1,
        3,
    ]  # 2 + 1 + 1: a second search is too dear


def test_a_quantile_of_finished_batches_says_which_outcomes_are_failures():
    resampler = Resampler(ResamplerConfig(k=2, schedule="batch", success_quantile=0.5), TOKENS, 8)

    def forks(step, *rewards):
        return len(
            resampler.offer(
                group("a", *(calling(0.5, r, i) for i, r in enumerate(rewards))), step, 0, 1
            ).forks
        )

    assert forks(0, 0.4, 0.2) == 0  # nothing seen: success_above, which is 0
    assert forks(1, 0.2, 0.1) == 1  # of 0.2 and 0.4 the lower median is 0.2
    assert forks(2, 0.3, 0.1) == 0  # of 0.1 0.2 0.2 0.4 too: 0.3 is above it
    for step in range(3, 7):
        forks(step, 0.9, 0.8)
    assert forks(7, 0.8, 0.3) == 1  # four batches of 0.8 and 0.9 are remembered


def test_another_resampler_goes_on_from_the_history():
    config = ResamplerConfig(k=2, target_recovery=0.5, success_quantile=0.5, budget_ratio=1)
    first, second = (Resampler(config, TOKENS, 8) for _ in range(2))
    for step in range(6):
        first.offer(two_candidates("a", 0.5, 0.25), step, 0, 2)
        first.offer(group("b", direct(0.5), calling(0.1 * (step + 1), 0.2, 1)), step, 1, 2)
        first.learn(step % 3 == 0, "search", 0.5 * step)
    second.restore(first.history())
    assert second.history() == first.history()
    assert len(first.history().past) == 4
    offers = [
        (two_candidates("c", 0.6, 0.2), 6, 0, 3),
        (None, 6, 1, 3),
        (two_candidates("d", 0.3, 0.9), 6, 2, 3),
    ]
    decisions = [first.offer(*offer) for offer in offers]
    assert [second.offer(*offer) for offer in offers] == decisions
    assert any(decision.forks for decision in decisions)


def test_a_lost_group_counts_for_the_batch_and_has_no_candidates():
    # floor(0.25 * 2 * 8 / 4) = 1 prefix.
    assert offers([two_candidates("a", 0.5, 0.25), None], k=4) == [([], []), ([(0, 2, 3)], [0, 1])]


def test_steps_do_not_mix():
    resampler = Resampler(ResamplerConfig(k=2), TOKENS, 8)
    assert resampler.offer(two_candidates("a", 0.5, 0.25), 0, 0, 2).settled == ()
    assert resampler.offer(None, 1, 0, 1) == Decision((), (0,))
    assert resampler.offer(None, 0, 1, 2).settled == (0, 1)


def test_an_unscored_rollout_is_refused():
    import numpy as np

    unscored = group("a", Trajectory("a", 0, np.zeros(1, np.int32), (), EndReason.DEADLINE))
    with pytest.raises(ValueError, match="has no reward"):
        offers([unscored])


@pytest.mark.engine
def test_as_an_actor():
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        resampler = start_resampler(ResamplerConfig(k=2), TOKENS, 8)
        ray.get(resampler.offer.remote(two_candidates("a", 0.5, 0.25), 0, 0, 2), timeout=60)
        decision = ray.get(
            resampler.offer.remote(ray.put(two_candidates("b", 0.1, 0.2)), 0, 1, 2), timeout=60
        )
        assert decision.settled == (0, 1)
    finally:
        if ours:
            ray.shutdown()
