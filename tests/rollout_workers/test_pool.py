"""Spreading questions over workers, and what happens when one is lost.

The workers are mock actors on a real Ray.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray

from rollout_workers.config import RolloutConfig
from rollout_workers.fleet import Asleep, WorkersFailed
from rollout_workers.importing import note_imported
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    Group,
    LazyImage,
    PolicySegment,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    UnusableQuestion,
)
from tests.rollout_workers.helpers import picture

pytestmark = [pytest.mark.engine]
TOKENS = SpecialTokens(*range(9))


class MockWorker:
    """Takes `info["seconds"]` for a question.

    Worker 0 does what `info["fault"]` says; the one that replaces it is spared.
    """

    def __init__(self, index, settings):
        self.index, self.verify, self.ill = index, settings.verify, False
        self.dies_asleep = settings.model == "dies asleep"
        self.loads_slowly = settings.model == "replacements load slowly" and index >= 2
        self.calls = []
        if settings.model == "imports":
            note_imported(index)
            time.sleep(3)
        if settings.model == "broken":
            raise ValueError("no such model")

    async def ready(self):
        if self.loads_slowly:
            await asyncio.sleep(1.5)
        self.calls.append("ready")
        return TOKENS

    async def ping(self):
        if self.ill:
            raise RuntimeError("the engine is dead")

    async def rollout(self, question, n, step, *, temperature=None, evaluating=False):
        fault = (
            question.info.get("fault") if self.index == 0 or question.info.get("always") else None
        )
        if fault == "die":
            os._exit(1)
        # The kernel continues stopped processes if their process group loses its shell.
        while fault == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "bug":
            raise IndexError("a bug")
        if fault == "unusable":
            raise UnusableQuestion(f"question {question.id}: 9,999 tokens of images")
        await asyncio.sleep(question.info.get("seconds", 0))
        self.ill = fault == "engine"
        rollouts = [
            self.trajectory(
                question, i, EndReason.ENGINE_FAILURE if self.ill else EndReason.ANSWERED
            )
            for i in range(n)
        ]
        if fault == "garbage":
            rollouts[1] = replace(
                rollouts[1],
                segments=(PolicySegment(np.ones(2, np.int32), np.full(2, np.nan, np.float32), 0),),
            )
        if fault == "short":
            rollouts.pop()
        return Group(question, tuple(rollouts), worker=self.index)

    def trajectory(self, question, i, end):
        segments = (PolicySegment(np.arange(4, dtype=np.int32), np.full(4, -0.5, np.float32), 0),)
        reward = None if end.infrastructure else self.verify(question, question.answer)
        return Trajectory(
            question.id,
            i,
            np.ones(1, np.int32),
            segments,
            end,
            reward=reward,
            answer=str(self.index),
        )

    async def fork(self, question, source, request, step):
        assert (
            len(source.response_ids) == request.prefix_tokens
        )  # what follows the prefix is not sent
        await asyncio.sleep(question.info.get("seconds", 0))
        return Resample(
            source.rollout,
            request.prefix_tokens,
            tuple(self.trajectory(question, i, EndReason.ANSWERED) for i in range(request.k)),
        )

    async def sleep(self):
        self.calls.append("sleep")
        if self.index == 0 and self.dies_asleep:
            os._exit(1)

    async def wake(self, tag):
        self.calls.append(f"wake {tag}")

    async def join(self):
        self.calls.append("join")

    async def engine_stats(self):
        return {
            "generated_tokens": 1,
            "prompt_tokens": 1,
            "cached_tokens": 0,
            "idle_seconds": 0.0,
            "seconds": 1.0,
            "queued": 0,
            "slots": 2,
        }

    async def shutdown(self):
        pass


def reward(question, answer):
    return 1.0


@pytest.fixture
def make(cluster):
    """Makes pools; their events are in `pool.events`."""
    pools = []

    def pool(model="model", **config) -> RolloutPool:
        events = []
        config = RolloutConfig(
            **{"workers": 2, "n": 2, "concurrency": 2, "cpus_per_worker": 0.1, "health_s": 1.5}
            | config
        )
        made = RolloutPool(
            WorkerSettings(model, config, None, reward, run_seed=0),
            actor_class=MockWorker,
            log=lambda event, **fields: events.append((event, fields)),
        )
        made.events = events
        pools.append(made)
        return made

    yield pool
    for made in pools:
        made.shutdown()


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ask(**info) -> Question:
    return Question(info.pop("id"), "?", (ray.put(picture(0)),), "7", info)


def test_a_worker_that_is_lost_asleep_is_replaced_when_the_others_have_woken(make):
    pool = make(model="dies asleep")
    pool.ready()
    pool.sleep()
    (left,) = pool.workers
    pool.wake("weights")
    time.sleep(1.0)  # there is no room for another one yet
    assert pool.workers == [left]
    pool.wake("kv_cache")
    until(lambda: len(pool.workers) == 2)
    assert [event for event, _ in pool.events].count("worker lost") == 1


def test_a_replacement_that_still_loads_is_waited_for_and_sleeps_with_the_others(make):
    """Otherwise it would hold its memory beside the learner's while that trains."""
    pool = make(model="replacements load slowly")
    pool.ready()
    pool.join_with(lambda actor: ray.get(actor.join.remote()))
    dead, left = pool.workers
    ray.kill(dead)
    until(lambda: any(worker.id == 2 for worker in list(pool._fleet._unsettled)))
    pool.sleep()
    assert pool.workers == [left]
    (new,) = [w.client.actor for w in pool._fleet.loaded if w.client.actor != left]
    calls = new.__ray_call__.remote(lambda self: self.calls)
    assert ray.get(calls, timeout=30) == ["ready", "sleep"]
    pool.wake("weights")
    time.sleep(0.5)
    assert pool.workers == [left]
    pool.wake("kv_cache")
    until(lambda: len(pool.workers) == 2)
    calls = new.__ray_call__.remote(lambda self: self.calls)
    expected = ["ready", "sleep", "wake weights", "wake kv_cache", "join"]
    assert ray.get(calls, timeout=30) == expected


def test_a_replacement_that_finds_the_engines_asleep_joins_when_they_have_woken(make):
    pool = make(workers=1)
    asleep = [True]
    asked = threading.Event()

    def bring(actor):
        asked.set()
        if asleep:
            raise Asleep

    pool.ready()
    pool.join_with(bring)
    ray.kill(pool.workers[0])
    # It asks as long as there is room, and does not serve.
    assert asked.wait(30)
    assert pool.workers == []
    asleep.clear()
    until(lambda: len(pool.workers) == 1)
    assert [event for event, _ in pool.events].count("worker lost") == 1


def test_groups_come_as_they_finish_from_all_workers(make):
    pool = make()
    slow, *fast = [ask(id="slow", seconds=2.0), *[ask(id=str(i), seconds=0.05) for i in range(9)]]
    groups = list(pool.rollout([slow, *fast], step=0, n=3))
    assert sorted(g.question.id for g in groups) == sorted(["slow", *map(str, range(9))])
    assert groups[-1].question.id == "slow"
    assert {g.worker for g in groups} == {0, 1}
    assert {len(g.rollouts) for g in groups} == {3}
    assert pool.ready() == TOKENS


@pytest.mark.parametrize("fault", ["die", "freeze", "engine", "garbage", "short"])
def test_a_lost_worker_is_replaced_and_its_questions_are_asked_again(make, fault):
    pool = make(workers=1, concurrency=64)
    joined = []
    pool.ready()
    process = ray.get(pool.workers[0].__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    pool.join_with(joined.append)
    questions = [ask(id="ill", fault=fault), *[ask(id=str(i), seconds=0.3) for i in range(3)]]
    groups = list(pool.rollout(questions, step=4))
    assert sorted(g.question.id for g in groups) == ["0", "1", "2", "ill"]
    assert next(g for g in groups if g.question.id == "ill").worker == 1
    assert all(t.reward == 1.0 for g in groups for t in g.rollouts)
    assert [event for event, _ in pool.events if event != "requeued"] == [
        "worker serves",
        "worker lost",
        "worker serves",
    ]
    assert len(joined) == 1  # the replacement got the weights before it served
    assert not alive(process)
    assert pool.take_stats()["workers_lost"] == 1


def test_two_workers_dead_at_once(make):
    pool = make()
    groups = list(
        pool.rollout(
            [ask(id="a", fault="die"), *[ask(id=str(i), seconds=0.2) for i in range(6)]], step=0
        )
    )
    assert len(groups) == 7
    until(lambda: len(pool.workers) == 2)
    for worker in pool.workers:
        ray.kill(worker)
    assert len(list(pool.rollout([ask(id=str(i)) for i in range(4)], step=1))) == 4
    assert sum(event == "worker lost" for event, _ in pool.events) == 3


def test_a_worker_that_never_answers_is_given_up_at_its_deadline(make, monkeypatch):
    monkeypatch.setattr("rollout_workers.pool._SCORING_MARGIN_S", 0.5)
    pool = make(workers=1, deadline_s=0.1, verify_s=0.1, max_failures=0)
    with pytest.raises(WorkersFailed, match="rollout gave no answer for 2 s"):
        list(pool.rollout([ask(id="a", seconds=60)], step=4))


def test_too_many_failures_end_the_run_with_one_line(make):
    pool = make(workers=1, max_failures=1)
    with pytest.raises(
        WorkersFailed, match=r"2 rollout workers were lost, rollout\.max_failures=1"
    ):
        list(pool.rollout([ask(id="a", fault="die", always=True), ask(id="b")], step=0))


def test_a_bug_and_a_start_that_fails_are_raised(make):
    with pytest.raises(IndexError, match="a bug"):
        list(make(workers=1).rollout([ask(id="a", fault="bug")], step=0))
    with pytest.raises(ray.exceptions.RayActorError, match="no such model"):
        make("broken").ready()


def test_the_imports_of_workers_are_known_before_they_serve(make):
    pool = make("imports")
    pool.imported(30)
    assert pool.workers == []
    pool.ready()
    assert len(pool.workers) == 2


def test_nobody_waits_for_the_imports_of_workers_that_cannot_start(make):
    started = time.monotonic()
    make("broken").imported(60)
    assert time.monotonic() - started < 30


def test_lazy_images_are_read_when_a_worker_has_room_and_only_then(make):
    pool = make(workers=1, concurrency=2, n=2)
    read, most = [], []

    def lazily(name):
        def pixels():
            most.append(len(read) + 1 - len(finished))
            read.append(name)
            return picture(0)

        return LazyImage(pixels)

    finished = []
    questions = [Question(str(i), "?", (lazily(str(i)),), "7", {"seconds": 0.1}) for i in range(12)]
    for group in pool.rollout(questions, step=0):
        finished.append(group.question.id)
        assert isinstance(group.question.images[0], ray.ObjectRef)
    assert sorted(read) == sorted(finished) == sorted(str(i) for i in range(12))
    # A worker is given twice the rollouts that it has slots for: two questions of two. What is
    # finished is seen here a moment later.
    assert max(most) <= 2 + 2


def test_questions_that_cannot_be_asked_are_told_from_bugs(make):
    def truncated():
        raise UnusableQuestion("a.jsonl, row 2: images: a.jpg cannot be read")

    def fine():
        return picture(0)

    pool = make(workers=1, concurrency=2, n=2)
    questions = [
        Question("lazy", "?", (LazyImage(truncated),), "7"),
        ask(id="long", fault="unusable"),
        *[Question(str(i), "?", (LazyImage(fine),), "7") for i in range(4)],
    ]
    outcomes = list(pool.outcomes(questions, step=0))
    groups = [outcome for outcome in outcomes if isinstance(outcome, Group)]
    reasons = [str(outcome) for outcome in outcomes if isinstance(outcome, UnusableQuestion)]
    assert sorted(group.question.id for group in groups) == ["0", "1", "2", "3"]
    assert sorted(reasons) == [
        "a.jsonl, row 2: images: a.jpg cannot be read",
        "question long: 9,999 tokens of images",
    ]
    # The worker is not to blame, and holds nothing back.
    assert pool.take_stats()["workers_lost"] == 0
    with pytest.raises(UnusableQuestion, match="row 2"):
        list(pool.rollout(questions[:1], step=0))
    assert len(list(pool.rollout(questions[2:], step=0, n=4))) == 4


def test_images_that_are_never_read_are_given_up(make, monkeypatch):
    monkeypatch.setattr("rollout_workers.pool._READ_S", 0.2)
    begun, go_on = threading.Event(), threading.Event()

    def hangs():
        begun.set()
        go_on.wait(30)
        return picture(0)

    (outcome,) = make(workers=1).outcomes([Question("a", "?", (LazyImage(hangs),), "7")], step=0)
    assert begun.is_set()
    go_on.set()
    assert str(outcome) == "question a: its images were not read within 0.2 s"


def test_forks_go_home_unless_it_is_overloaded_or_gone(make):
    pool = make(concurrency=12, concurrency_min=12)
    pool.ready()

    async def forks(seconds, count):
        group = Group(
            ask(id="q", seconds=seconds),
            (
                MockWorker(
                    0, WorkerSettings("", RolloutConfig(), None, None, run_seed=0)
                ).trajectory(ask(id="q"), 0, EndReason.DEADLINE),
            ),
            worker=1,
        )
        return await asyncio.gather(
            *[pool.fork(group, ForkRequest(0, 3, k=4), 0) for _ in range(count)]
        )

    def homes(resamples):
        return [r.continuations[0].answer == "1" for r in resamples]

    pool._fleet.serving.sort(key=lambda worker: worker.id)
    MockWorker.verify = staticmethod(lambda question, answer: 0.0)
    assert homes(pool.run(forks(0.0, 1)).result(30)) == [True]
    # Home has slots for three forks. The fourth would bring it to 16, more than 1.25 times the mean
    # (6) plus itself, and goes away ...
    at_once = homes(pool.run(forks(0.5, 8)).result(30))
    assert at_once[:4] == [True, True, True, False]
    # ... but as the other fills up, home takes more than it has slots.
    assert at_once.count(True) > 3
    ray.kill(pool.workers[1])
    assert homes(pool.run(forks(0.0, 1)).result(60)) == [False]
    assert pool.take_stats()["forks_home_share"] < 1


@pytest.mark.parametrize(
    "again",
    [
        pytest.param([], id="alone"),
        pytest.param(["again"], id="before another session", marks=pytest.mark.slow),
    ],
)
def test_a_pool_that_outlives_its_ray_session_stops_and_prints_nothing(again):
    """It once started a Ray session of its own, and printed a traceback as the process ended."""
    command = [sys.executable, "-m", "tests.rollout_workers.outlive", *again]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


def test_nothing_is_left_behind(make):
    pool = make()
    pool.ready()
    processes = ray.get(
        [worker.__ray_call__.remote(lambda self: os.getpid()) for worker in pool.workers],
        timeout=30,
    )
    group = pool._fleet._places.own
    pool.shutdown()
    pool.shutdown = lambda: None
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"
    until(lambda: not any(map(alive, processes)))
