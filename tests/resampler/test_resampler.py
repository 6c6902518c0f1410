"""What a finished group leads to, with the settings of a recipe."""

import asyncio
import dataclasses
from concurrent.futures import Future

import numpy as np
import pytest

from resampler.client import ResamplerClient
from resampler.config import ResamplerConfig
from resampler.history import BATCHES, REMEMBERED, History, Outcome, PastBatch
from resampler.resampler import Resampler, start_resampler
from resampler.schedules import Decision
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


def resampler(**settings) -> Resampler:
    config = ResamplerConfig.model_validate({"k": 2, "schedule": "batch"} | settings)
    return Resampler(config, TOKENS, n=8)


def offers(groups, **settings):
    """What each offer of a batch led to: [(place, rollout, prefix) of forks], places settled."""
    ours = resampler(**settings)
    decisions = [
        ours.offer(group_, batch=5, place=place, questions=len(groups))
        for place, group_ in enumerate(groups)
    ]
    return [
        ([(c.group, c.rollout, c.prefix_tokens) for c in d.forks], list(d.settled))
        for d in decisions
    ]


def test_the_batch_schedule_waits_for_all_and_chooses_as_the_paper_does():
    groups = [two_candidates("a", 0.5, 0.25), group("b", direct(1)), two_candidates("c", 0.75, 0.9)]
    # Budget: floor(0.25 * 3 * 8 / 2) * 2 = 6 rollouts, 3 prefixes: a's 0.25, c's 0.75, then a's
    # 0.5.
    assert offers(groups) == [
        ([], []),
        ([], []),
        ([(0, 2, 3), (2, 1, 3), (0, 1, 3)], [0, 1, 2]),
    ]


def test_fork_at_changes_where_a_source_is_forked_and_not_which():
    groups = [two_candidates("a", 0.5, 0.25)]
    assert offers(groups) == [([(0, 2, 3)], [0])]
    assert offers(groups, fork_at="prompt") == [([(0, 2, 0)], [0])]
    # The one rollout without a tool is right.
    assert offers(groups, fork_at="answer") == [([], [0])]


def test_a_threshold_says_which_outcomes_are_failures():
    group_ = group("a", calling(0.5, 0.4), calling(0.25, 0.5, 1))
    assert offers([group_]) == [([], [0])]
    assert offers([group_], trigger={"success_above": 0.4}) == [([], [0])]
    assert offers([group_], trigger={"success_above": 0.5}) == [([(0, 1, 3)], [0])]


def test_every_call_is_a_place_to_fork():
    turn = [(4, 0.1), (5, 0.8), (6, 0.8), (2, 0.9)]
    unsure_turn = [(4, 0.1), (5, 0.2), (6, 0.4), (2, 0.9)]
    sure = turns([turn, [70], turn, [70], turn[:1]], 0.0)
    unsure = turns([turn, [70], unsure_turn, [70], turn[:1]], 0.0, 1)
    groups = [group("a", sure, unsure)]
    # n=8, k=2: 8 * ratio / 2 prefixes. First calls: a tie at 0.8, the earlier rollout. All calls:
    # the second of rollout 1, at 0.3, first.
    assert offers(groups) == [([(0, 0, 2)], [0])]
    assert offers(groups, fork_at="every_call") == [([(0, 1, 7)], [0])]
    forks, _ = offers(groups, fork_at="every_call", budget={"ratio": 1})[0]
    assert forks == [(0, 1, 7), (0, 0, 2), (0, 0, 7), (0, 1, 2)]


def test_an_adaptive_budget_follows_the_recovery_rate():
    ours = resampler(budget={"name": "adaptive", "ratio": 1, "target_recovery": 0.5})

    def forks(batch):
        rollouts = [calling(0.5, rollout=i) for i in range(4)]
        return len(ours.offer(group("a", *rollouts), batch, 0, 1).forks)

    assert forks(0) == 4  # nothing measured: floor(1 * 8 / 2) = 4, the whole budget
    for recovered in (True, False, False, False):
        ours.learn(Outcome(recovered))
    assert forks(1) == 2  # 1/4 is half of the target
    for _ in range(64):
        ours.learn(Outcome(False))
    assert forks(2) == 1  # never none, or the rate would be measured no more


def test_an_adaptive_budget_follows_the_cost_of_tools():
    ours = resampler(budget={"name": "adaptive", "ratio": 1, "target_cost_s": 1.0})

    def forks(batch, *tools):
        called = [
            dataclasses.replace(calling(0.5, rollout=i), stats=RolloutStats(tools=(tool,)))
            for i, tool in enumerate(tools)
        ]
        return [c.rollout for c in ours.offer(group("a", *called), batch, 0, 1).forks]

    # Nothing measured: floor(1 * 8 / 2) = 4, the whole budget.
    assert forks(0, "search", "search", "zoom", "search") == [0, 1, 2, 3]
    ours.learn(Outcome(False, "search", 2.0))
    ours.learn(Outcome(False, "zoom", 0.1))
    assert forks(1, "search", "search", "search", "search") == [0, 1]  # each counts for two
    # 2 + 1 + 1: a second search is too expensive.
    assert forks(2, "search", "zoom", "search", "zoom") == [0, 1, 3]


def test_the_budget_of_a_batch_is_that_of_its_first_question():
    ours = resampler(budget={"name": "adaptive", "ratio": 1, "target_recovery": 0.5})
    assert ours.offer(two_candidates("a", 0.5, 0.25), 0, 0, 2) == Decision()
    for _ in range(64):
        ours.learn(Outcome(False))
    assert len(ours.offer(two_candidates("b", 0.5, 0.25), 0, 1, 2).forks) == 4


def test_a_quantile_of_finished_batches_says_which_outcomes_are_failures():
    ours = resampler(trigger={"name": "quantile", "quantile": 0.5})

    def forks(batch, *rewards):
        rollouts = [calling(0.5, reward, i) for i, reward in enumerate(rewards)]
        return len(ours.offer(group("a", *rollouts), batch, 0, 1).forks)

    assert forks(0, 0.4, 0.2) == 0  # nothing seen: success_above, which is 0
    assert forks(1, 0.2, 0.1) == 1  # of 0.2 and 0.4 the lower median is 0.2
    assert forks(2, 0.3, 0.1) == 0  # of 0.1 0.2 0.2 0.4 too: 0.3 is above it
    for batch in range(3, 7):
        forks(batch, 0.9, 0.8)
    assert forks(7, 0.8, 0.3) == 1  # four batches of 0.8 and 0.9 are remembered


def test_another_resampler_goes_on_from_the_history():
    settings = {
        "schedule": "streaming",
        "budget": {"name": "adaptive", "ratio": 1, "target_recovery": 0.5},
        "trigger": "quantile",
    }
    first, second = resampler(**settings), resampler(**settings)
    for batch in range(6):
        first.offer(two_candidates("a", 0.5, 0.25), batch, 0, 2)
        first.offer(group("b", direct(0.5), calling(0.1 * (batch + 1), 0.2, 1)), batch, 1, 2)
        first.learn(Outcome(batch % 3 == 0, "search", 0.5 * batch))
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


def test_a_history_forgets_the_oldest():
    history = History()
    for i in range(REMEMBERED + 2):
        history = history.after(Outcome(i > 1, str(i), float(i)))
    assert (len(history.recoveries), all(history.recoveries)) == (REMEMBERED, True)
    assert history.costs[0] == ("2", 2.0)
    for questions in range(BATCHES + 1):
        history = history.after_batch(PastBatch(questions, rewards=(float(questions),)))
    assert [batch.questions for batch in history.past] == [1, 2, 3, 4]
    assert history.rewards == [1.0, 2.0, 3.0, 4.0]


def test_a_lost_group_counts_for_the_batch_and_has_no_candidates():
    groups = [two_candidates("a", 0.5, 0.25), None]
    # floor(0.25 * 2 * 8 / 4) = 1 prefix.
    assert offers(groups, k=4) == [([], []), ([(0, 2, 3)], [0, 1])]


def test_batches_do_not_mix():
    ours = resampler(schedule="streaming")
    assert ours.offer(two_candidates("a", 0.5, 0.25), 0, 0, 2).settled == ()
    assert ours.offer(None, 1, 0, 1) == Decision((), (0,))
    assert ours.offer(None, 0, 1, 2).settled == (0, 1)


def test_an_unscored_rollout_is_refused():
    unscored = group("a", Trajectory("a", 0, np.zeros(1, np.int32), (), EndReason.DEADLINE))
    with pytest.raises(ValueError, match="has no reward"):
        offers([unscored])


def half_a_prefix(questions, n, k, history):
    """Give half a prefix."""
    return 0.5


def test_a_budget_of_ones_own_must_be_a_whole_number():
    with pytest.raises(ValueError, match=r"gave 0.5 prefixes for 1 questions, expected a whole"):
        offers([None], budget="tests.resampler.test_resampler:half_a_prefix")


class Silent:
    """An actor that never answers."""

    def __getattr__(self, name):
        return self

    def remote(self, *arguments):
        return self

    def future(self):
        return Future()


def test_every_wait_of_the_client_has_a_deadline():
    client = ResamplerClient(Silent(), deadline_s=0.01)
    client.learn(Outcome(True))  # does not wait
    with pytest.raises(TimeoutError):
        asyncio.run(client.offer(None, 0, 0, 1))
    with pytest.raises(TimeoutError):
        client.history()
    with pytest.raises(TimeoutError):
        client.restore(History())


@pytest.mark.engine
def test_as_an_actor():
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        client = start_resampler(ResamplerConfig(k=2), TOKENS, 8)
        asyncio.run(client.offer(two_candidates("a", 0.5, 0.25), 0, 0, 2))
        second = ray.put(two_candidates("b", 0.1, 0.2))
        assert asyncio.run(client.offer(second, 0, 1, 2)).settled == (0, 1)
        client.learn(Outcome(True, "zoom", 0.5))
        history = client.history()
        assert (history.recoveries, history.costs) == ((True,), (("zoom", 0.5),))
        assert [batch.questions for batch in history.past] == [2]
        client.restore(History())
        assert client.history() == History()
    finally:
        if ours:
            ray.shutdown()
