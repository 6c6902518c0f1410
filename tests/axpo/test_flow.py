"""Questions in, batches out: synchronous and asynchronous, over a pool and a resampler without Ray. The event log must balance."""

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from axpo.config import parse_recipe
from axpo.flow import Flow
from axpo.ledger import Balance, balance
from resampler.config import ResamplerConfig
from resampler.resampler import Resampler
from rollout_workers.trajectory import EndReason, Question, Resample, RolloutStats
from tests.axpo.helpers import TOKENS, direct, resample, zooming
from tests.axpo.helpers import group as make_group

WRONG_BOX, RIGHT_BOX = (0, 0, 1, 1), (5, 5, 9, 9)


class Pool:
    """Answers a question after `seconds[index]`; `broken` questions have a rollout without a reward."""

    def __init__(self, seconds=None, broken=(), buggy=()):
        self.seconds, self.broken, self.buggy = seconds or {}, broken, buggy
        self.forks, self.in_flight, self.most = [], 0, 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def group(self, question, step):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds.get(int(question.id), 0.01))
        finally:
            self.in_flight -= 1
        if int(question.id) in self.buggy:
            raise IndexError("a bug")
        failed = None if int(question.id) in self.broken else 0.0
        rollouts = [direct(0, 1.0, question.id), zooming(1, 0.0, WRONG_BOX, question.id), zooming(2, failed, WRONG_BOX, question.id)]
        if failed is None:
            rollouts[2] = replace(rollouts[2], end=EndReason.VERIFIER_FAILURE, stats=RolloutStats(fault="KeyError: 'unit'"))
        group = make_group(rollouts, question=question.id)
        return group, group

    async def fork(self, group, rollout, prefix_tokens, k, step):
        self.forks.append((int(group.question.id), rollout, self.in_flight))
        source = group.rollouts[rollout]
        made = resample(source, [(RIGHT_BOX, float(i == 0), 9) for i in range(k)])
        return made if int(group.question.id) != 1 else Resample(rollout, prefix_tokens, made.continuations[:-1])


class Remote:
    """A resampler called as an actor is."""

    def __init__(self, recipe):
        self.resampler, self.offer = Resampler(recipe.resampler, TOKENS, recipe.rollout.n), self

    def remote(self, *arguments):
        future = Future()
        future.set_result(self.resampler.offer(*arguments))
        return SimpleNamespace(future=lambda: future)


class Task:
    def train(self, index):
        return Question(str(index), "?", (), "7")


def recipe(**fields):
    return parse_recipe(
        {
            "name": "flow",
            "model": "axpo/models/qwen3-vl-tiny",
            "task": {"kind": "small_digit"},
            "steps": 4,
            "questions_per_step": 4,
            "rollout": {"n": 3, "engine": {"weight_transfer": "shared_memory"}},
            "resampler": {"k": 2, "budget_ratio": 0.5, "schedule": "batch"},
        }
        | fields
    )


def start(pool=None, first=0, cursor=None, **fields):
    """Returns (flow, its pool, its events)."""
    events, settings, pool = [], recipe(**fields), pool or Pool()
    log = lambda event, **values: events.append({"event": event} | values)  # noqa: E731
    return Flow(settings, Task(), pool, Remote(settings), first, **(cursor or {}), log=log), pool, events


def ids(taken):
    return [int(g.question.id) for g in taken.groups]


def test_a_synchronous_batch_is_the_steps_questions_in_order_with_their_forks():
    flow, pool, events = start(Pool(seconds={1: 0.2}))
    for step in range(4):
        flow.feed(step)
        taken = flow.take(step)
        assert ids(taken) == list(range(4 * step, 4 * step + 4))
        assert set(taken.staleness.values()) == {0}
        # All four trigger; R = floor(0.5 * 4 * 3 / 2) * 2 = 6: three prefixes of two. Question 1's came back short: dropped whole.
        assert [len(g.resamples) for g in taken.groups] == ([1, 0, 1, 0] if step == 0 else [1, 1, 1, 0])
        assert taken.forks_dropped == (1 if step == 0 else 0)
    assert balance(events) == Balance(16, 16, 0, 0)
    assert pool.most == 4


def test_grpo_forks_nothing():
    flow, pool, _ = start(algorithm="grpo")
    flow.feed(0)
    assert [g.resamples for g in flow.take(0).groups] == [()] * 4
    assert pool.forks == []


def test_streaming_forks_start_while_other_questions_still_generate():
    flow, pool, _ = start(Pool(seconds={0: 0.5}), resampler={"k": 2, "budget_ratio": 2.0, "schedule": "streaming"})
    flow.feed(0)
    flow.take(0)
    assert any(in_flight for question, _, in_flight in pool.forks if question)


def test_a_group_that_infrastructure_broke_is_dropped_and_the_budget_does_not_wait_for_it():
    flow, _, events = start(Pool(broken=(2,)))
    flow.feed(0)
    taken = flow.take(0)
    assert (ids(taken), taken.dropped, taken.verifier_failures) == ([0, 1, 3], 1, 1)
    assert balance(events) == Balance(4, 3, 1, 0)
    assert {"event": "verifier failed", "question": "2", "rollout": 2, "fault": "KeyError: 'unit'"} in events


def test_a_bug_is_raised():
    flow, _, _ = start(Pool(buggy=(1,), seconds={0: 30}))
    flow.feed(0)
    with pytest.raises(IndexError, match="a bug"):
        flow.take(0)
    flow.close()


def run(flow, steps, seconds=0.0):
    taken = []
    for step in range(steps):
        flow.feed(step)
        taken.append(flow.take(step))
        time.sleep(seconds)
    return taken


@pytest.mark.parametrize("bound", [1, 2])
def test_an_asynchronous_run_keeps_more_batches_under_way_and_no_group_is_older_than_the_bound(bound):
    rng = np.random.default_rng(bound)
    seconds = {i: float(rng.uniform(0, 0.05)) for i in range(32)}
    flow, pool, events = start(Pool(seconds=seconds), steps=8, max_staleness=bound)
    taken = run(flow, 8, 0.01)
    assert sorted(i for t in taken for i in ids(t)) == list(range(32))  # each exactly once
    assert max(age for t in taken for age in t.staleness.values()) == bound
    assert balance(events) == Balance(32, 32, 0, 0)
    assert pool.most == 4 * (bound + 1)


def test_a_straggler_is_waited_for_at_the_bound_and_not_before():
    flow, _, _ = start(Pool(seconds={0: 0.6}), max_staleness=1)
    begun = time.monotonic()
    flow.feed(0)
    first = flow.take(0)
    assert time.monotonic() - begun < 0.5
    assert 0 not in ids(first)
    flow.feed(1)
    second = flow.take(1)
    assert (0 in ids(second), second.staleness["0"]) == (True, 1)
    assert time.monotonic() - begun > 0.5


def test_or_it_is_dropped_counted_and_another_question_asked():
    flow, pool, events = start(Pool(seconds={0: 30}), max_staleness=1, stale="drop")
    taken = run(flow, 4)
    assert [t.stale for t in taken] == [0, 1, 0, 0]
    assert sorted(i for t in taken for i in ids(t)) == list(range(1, 17))
    assert balance(events) == Balance(17, 16, 1, 0)
    assert pool.in_flight == 0  # its rollouts were cancelled


def test_a_resume_asks_again_what_was_under_way():
    flow, _, _ = start(Pool(seconds={2: 30.0}), max_staleness=1)
    flow.feed(0)
    before = ids(flow.take(0))
    cursor = flow.cursor
    flow.close()
    assert 2 in cursor["pending"]
    assert sorted(before + cursor["pending"]) == list(range(cursor["following"]))
    again, _, _ = start(first=1, cursor=cursor, max_staleness=1)
    after = []
    for step in (1, 2, 3):
        again.feed(step)
        after += ids(again.take(step))
    assert sorted(before + after) == list(range(16))


def test_the_config_refuses_what_cannot_be():
    assert ResamplerConfig().schedule == "streaming"
    with pytest.raises(Exception, match=r"max_staleness=1: must be 0 with rollout\.colocated"):
        recipe(max_staleness=1, rollout={"colocated": True, "engine": {"weight_transfer": "shared_memory"}})
