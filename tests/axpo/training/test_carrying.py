"""Forks that run beside the update and the next batch: nothing is lost or trained twice."""

import asyncio
import threading
from itertools import chain

import pytest

from axpo.errors import AxpoError
from axpo.evaluation.diagnostics import resample_diagnostics
from axpo.record.ledger import Balance, balance
from axpo.training.cursor import load_cursor
from axpo.training.metrics import batch_metrics, rollout_metrics
from learner.credit import credit
from tests.axpo.helpers import TOKENS
from tests.axpo.training.local import Pool, ids, recipe, resampling, start, step_of

CARRY = {"resampler": resampling(schedule="carry")}


class Held(Pool):
    """A pool whose forks come back when the test lets them."""

    def __init__(self, **answers):
        super().__init__(**answers)
        self.let_back = threading.Event()

    async def fork(self, group, request, batch):
        made = await super().fork(group, request, batch)
        while not self.let_back.is_set():
            await asyncio.sleep(0.005)
        return made


def trained(taken):
    """Return the entries that a batch trains: the question, the rollout, its fork, and tokens."""
    items = credit(taken.groups, TOKENS, carried=taken.carried)
    entries = []
    for item in items:
        tokens = tuple(item.mask.nonzero()[0].tolist())
        entries.append((item.question.id, item.trajectory.rollout, item.trajectory.fork, tokens))
    return entries


def carried_of(taken):
    return [(int(late.group.question.id), late.trained) for late in taken.carried]


def test_a_batch_does_not_wait_for_its_forks():
    flow, pool, events = start(Held(), **CARRY)
    taken = step_of(flow, 0)  # no fork is back
    assert [group.carried for group in taken.groups] == [(1,), (1,), (1,), ()]
    assert [group.resamples for group in taken.groups] == [()] * 4
    assert (taken.carried, taken.resampled) == ([], [])
    pool.let_back.set()
    taken = step_of(flow, 1)
    assert ids(taken) == [4, 5, 6, 7]
    # The fork of question 1 came back short: its source is trained late, and whole.
    assert carried_of(taken) == [(0, (0, 4)), (1, (0, 4)), (2, (0, 4))]
    assert [len(late.group.resamples) for late in taken.carried] == [1, 0, 1]
    assert taken.forks_dropped == 1
    assert balance(events) == Balance(8, 8, 0, 0)


def test_every_token_is_trained_once_and_by_the_end():
    """The same outcomes as with the paper's schedule, each entry at its own time."""
    entries = {}
    for schedule in ("batch", "carry"):
        flow, _, events = start(resampler=resampling(schedule=schedule))
        entries[schedule] = [trained(step_of(flow, step)) for step in range(4)]
        assert balance(events) == Balance(16, 16, 0, 0)
    batch, carry = (list(chain(*entries[schedule])) for schedule in ("batch", "carry"))
    assert len(set(carry)) == len(carry)
    assert sorted(carry, key=str) == sorted(batch, key=str)
    # In a step 12 rollouts are trained, 3 of them sources, with 2 continuations each.
    assert [len(of_step) for of_step in entries["batch"]] == [16, 18, 18, 18]
    assert [len(of_step) for of_step in entries["carry"]] == [9, 16, 18, 27]


def test_the_last_batch_waits_for_its_own_forks():
    flow, pool, events = start(Held(), steps=1, **CARRY)
    threading.Timer(0.2, pool.let_back.set).start()
    taken = step_of(flow, 0)
    assert carried_of(taken) == [(0, (0, 4)), (1, (0, 4)), (2, (0, 4))]
    assert [event["event"] for event in events].count("carried") == 3


def test_engines_that_sleep_during_the_update_get_the_forks_after_it():
    asleep = {
        "rollout": {"n": 3, "colocated": True, "engine": {"weight_transfer": "shared_memory"}}
    }
    flow, pool, _ = start(steps=2, **CARRY | asleep)
    step_of(flow, 0)
    assert pool.forks == []  # nothing may be in flight
    taken = step_of(flow, 1)  # the last one: its own forks start at once
    assert [question for question, _, _ in pool.forks] == [0, 1, 2, 4, 5, 6]
    assert len(taken.carried) == 6


def test_metrics_are_of_the_forks_that_are_trained():
    flow, _, _ = start(**CARRY)
    first, second = step_of(flow, 0), step_of(flow, 1)
    numbers = rollout_metrics(first.finished, first.resampled, 1.0)
    assert (numbers["fork_tokens"], numbers["recovered_groups"]) == (0, 0)
    numbers = rollout_metrics(second.finished, second.resampled, 1.0)
    assert numbers["recovered_groups"] == 2
    assert resample_diagnostics(second.resampled, TOKENS)["recovery_rate"] == 1.0
    assert [batch_metrics(taken)["groups_carried"] for taken in (first, second)] == [0, 3]


def test_what_a_fork_raises_ends_the_run():
    class Buggy(Pool):
        async def fork(self, group, request, batch):
            raise IndexError("a bug in a fork")

    flow, _, _ = start(Buggy(), **CARRY)
    step_of(flow, 0)
    with pytest.raises(IndexError, match="a bug in a fork"):
        step_of(flow, 1)


def test_a_fork_past_its_deadline_is_dropped():
    impatient = {"resampler": resampling(schedule="carry", deadline_s=0.1)}
    flow, _, _ = start(Held(), **impatient)
    step_of(flow, 0)
    taken = step_of(flow, 1)
    assert [late.group.resamples for late in taken.carried] == [()] * 3
    assert taken.forks_dropped == 3


def resumed(flow, folder, pool):
    """Return the flow of a new process that goes on from a checkpoint."""
    flow.cursor.save(folder)
    flow.close()
    return start(pool, cursor=load_cursor(folder), **CARRY)


def test_a_resume_makes_the_forks_again_that_were_under_way(tmp_path):
    flow, pool, _ = start(Held(), **CARRY)
    before = trained(step_of(flow, 0))
    again, pool, events = resumed(flow, tmp_path, Pool())
    # The engines do not have the policy yet.
    assert pool.forks == []
    taken = step_of(again, 1)
    assert [question for question, _, _ in pool.forks[:3]] == [0, 1, 2]
    assert carried_of(taken) == [(0, (0, 4)), (1, (0, 4)), (2, (0, 4))]
    assert balance(events) == Balance(4, 4, 0, 0)
    straight, _, _ = start(**CARRY)
    assert before + trained(taken) == trained(step_of(straight, 0)) + trained(step_of(straight, 1))


def test_a_resume_keeps_the_forks_that_were_back(tmp_path):
    flow, pool, _ = start(**CARRY)
    step_of(flow, 0)
    for held in flow._carrying._carried:
        held.forks.result.result(10)
    cursor = flow.cursor
    # Of question 1's prefix nothing came.
    assert [len(kept.group.resamples) for kept in cursor.carried] == [1, 0, 1]
    assert [kept.under_way for kept in cursor.carried] == [(), (), ()]
    again, pool, _ = resumed(flow, tmp_path, Pool())
    taken = step_of(again, 1)
    assert [question for question, _, _ in pool.forks] == [4, 5, 6]
    assert [len(late.group.resamples) for late in taken.carried] == [1, 0, 1]


def test_a_group_that_is_not_trained_yet_keeps_its_forks_over_a_resume(tmp_path):
    """Asynchronous: a batch may be finished, with forks under way, before the trainer takes it."""
    settings = CARRY | {"max_staleness": 1}
    flow, pool, _ = start(Held(seconds={0: 0.5}), **settings)
    step_of(flow, 0)
    # Those of both batches are under way, and the second batch is finished.
    while len(pool.forks) < 6 or len(flow.cursor.kept) < 4:
        threading.Event().wait(0.01)
    cursor = flow.cursor
    assert [kept.group.carried for kept in cursor.kept if kept.under_way] == [(1,)] * 3
    cursor.save(tmp_path)
    flow.close()
    again, pool, events = start(Pool(), cursor=load_cursor(tmp_path), **settings)
    taken = step_of(again, 1)
    # The batch of question 0 was the later one.
    assert (ids(taken), len(taken.carried)) == ([0, 1, 2, 3], 3)
    assert len(step_of(again, 2).carried) == 3
    balance(events)


def test_a_log_in_which_forks_are_trained_twice_or_too_early_is_refused():
    def log(*rows):
        return [dict(zip(("event", "question"), row, strict=True)) for row in rows]

    asked, done, late = ("dispatched", "a"), ("trained", "a"), ("carried", "a")
    assert balance(log(asked, done, late)) == Balance(1, 1, 0, 0)
    assert balance(log(late)) == Balance(0, 0, 0, 0)  # trained by an earlier process
    for rows in ([asked, late], [asked, done, late, late]):
        with pytest.raises(ValueError, match="twice or too early"):
            balance(log(*rows))


def test_a_joined_group_cannot_be_carried():
    with pytest.raises(AxpoError, match="needs all its outcomes at once"):
        recipe(**CARRY, learner={"credit": {"joined": True}})
