"""Faults on purpose, and what the rollouts of one worker make of them (a mock engine)."""

import asyncio
import pickle

import pytest

from rollout_workers.config import RolloutConfig
from rollout_workers.faults import POINTS, Fault, FaultPlan, InjectedFault
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import EndReason
from rollout_workers.worker import RolloutWorker
from tests.rollout_workers.helpers import ZOOM, MockEngine, MockTools, question, zoomed
from tests.rollout_workers.test_worker import ANSWER, CALL, right, worker_chat


def test_a_fault_happens_at_its_visit_to_its_worker_and_only_then():
    plan = pickle.loads(pickle.dumps(FaultPlan([Fault(0, "turn", 2, "raise")])))

    async def visits(worker, count):
        for _ in range(count):
            await plan.reach("turn", worker)

    asyncio.run(visits(0, 1))
    with pytest.raises(InjectedFault, match="turn of worker 0, visit 2"):
        asyncio.run(visits(0, 1))
    asyncio.run(visits(0, 5))
    asyncio.run(FaultPlan([Fault(0, "turn", 1, "raise")]).reach("turn", 1))


def test_a_seeded_plan_is_the_same_every_time():
    first, again = (FaultPlan.seeded(7, workers=3, count=5) for _ in range(2))
    assert first.faults == again.faults
    plans = [FaultPlan.seeded(seed, workers=3, count=5) for seed in range(20)]
    points = {fault.point for plan in plans for fault in plan.faults}
    assert points == set(POINTS)
    with pytest.raises(ValueError, match="no fault points named"):
        FaultPlan([Fault(0, "moon", 1, "kill")])


def group(model, *faults, replies=(CALL, ANSWER, CALL, ANSWER), **config):
    replies = iter(replies)  # one rollout after the other
    config = RolloutConfig(
        **{"n": 2, "deadline_s": 0.3, "concurrency": 1, "concurrency_min": 1} | config
    )
    settings = WorkerSettings(
        model, config, MockTools(zoomed), right, run_seed=9, faults=FaultPlan(faults)
    )

    def engine(settings, tokens):
        return MockEngine(worker_chat(model), lambda i: next(replies))

    worker = RolloutWorker(0, settings, engine_factory=engine)
    return asyncio.run(worker.rollout(question(), n=2, step=0))


@pytest.mark.parametrize("kind", ["raise", "hang"])
def test_one_request_that_fails_or_hangs_is_sampled_again(model, kind):
    rollouts = group(model, Fault(0, "turn", 1, kind)).rollouts
    assert [(t.end, t.reward) for t in rollouts] == [(EndReason.ANSWERED, 1.0)] * 2


def test_a_tool_that_never_returns_is_cut_at_the_deadline_and_is_nobodys_fault(model):
    hangs = [Fault(0, "tool", visit, "hang") for visit in (1, 2)]
    cut, complete = group(model, *hangs, replies=[CALL, CALL, CALL, ANSWER]).rollouts
    assert (cut.end, cut.reward) == (EndReason.DEADLINE, None)
    assert (complete.end, complete.reward) == (EndReason.ANSWERED, 1.0)
    assert ZOOM in worker_chat(model).decode(cut.response_ids)
