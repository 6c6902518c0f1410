"""Spreading questions over workers, with mock actors on a real Ray."""

import asyncio
import os
from collections.abc import Iterator

import pytest
import ray

from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import EndReason, Group, Question, SpecialTokens, Trajectory
from tests.rollout_workers.helpers import picture

pytestmark = [pytest.mark.engine]
TOKENS = SpecialTokens(*range(10))


class MockWorker:
    """Takes `info["seconds"]` for a question; `info["die"]` kills the process."""

    def __init__(self, index, model, config, tools, system, verify, run_seed, want_entropies):
        self.index, self.verify = index, verify

    async def ready(self):
        return TOKENS

    async def rollout(self, question, n, step, temperature=None):
        if question.info.get("die"):
            os._exit(1)
        await asyncio.sleep(question.info.get("seconds", 0))
        reward = self.verify(question, question.answer)
        rollouts = [Trajectory(question.id, i, TOKENS, (), EndReason.ANSWERED, reward=reward) for i in range(n)]
        return Group(question, tuple(rollouts), worker=self.index)

    async def shutdown(self):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def pool(**config) -> RolloutPool:
    config = RolloutConfig(**{"workers": 2, "n": 2, "concurrency": 2, "cpus_per_worker": 0.1} | config)
    return RolloutPool("model", config, None, None, lambda q, a: 1.0, run_seed=0, actor_class=MockWorker)


def ask(**info) -> Question:
    return Question(info.pop("id"), "?", (ray.put(picture(0)),), "7", info)


def test_groups_come_as_they_finish_from_all_workers(cluster):
    workers = pool()
    slow, *fast = [ask(id="slow", seconds=2.0), *[ask(id=str(i)) for i in range(9)]]
    groups = list(workers.rollout([slow, *fast], step=0, n=3))
    assert sorted(g.question.id for g in groups) == sorted(["slow", *map(str, range(9))])
    assert groups[-1].question.id == "slow"
    assert {g.worker for g in groups} == {0, 1}
    assert {len(g.rollouts) for g in groups} == {3}
    assert workers.ready() == TOKENS
    workers.shutdown()


def test_a_dead_worker_raises(cluster):
    workers = pool(workers=1)
    with pytest.raises(ray.exceptions.RayActorError):
        list(workers.rollout([ask(id="a", die=True)], step=0))
    workers.shutdown()


def test_a_worker_that_never_answers_raises(cluster, monkeypatch):
    monkeypatch.setattr("rollout_workers.pool._SCORING_MARGIN_S", 1.0)
    workers = pool(workers=1, deadline_s=0.1)
    with pytest.raises(TimeoutError, match="step 4: no group of 1 in flight finished within"):
        list(workers.rollout([ask(id="a", seconds=60)], step=4))
    workers.shutdown()
