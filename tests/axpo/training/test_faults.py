"""Faults in the middle of training.

Ray, pool, workers, tool servers, flow, resampler and policy are real; engines and learner are
mocks. After each fault the steps complete or the run stops clearly, the event log balances, and
nothing is left behind.
"""

import asyncio
import os
import signal

import numpy as np
import pytest
import ray
from ray.util import placement_group_table

from axpo.config import parse_recipe
from axpo.record.ledger import Balance, balance
from axpo.training.actors import Actors
from axpo.training.flow import Flow
from axpo.training.policy import Policy
from axpo.training.trainer import train_step
from resampler.resampler import start_resampler
from rollout_workers.faults import Fault, FaultPlan
from rollout_workers.fleet import WorkersFailed
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tests.axpo.training.test_trainer import (
    MODEL,
    MockWorker,
    Phases,
    ScriptedEngine,
    SevenTask,
    policy_versions,
)
from tests.rollout_workers.test_pool import alive, until
from tool_server.pool import start_tool_servers

# A lost worker is noticed after seconds, so a busy machine can fail them.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
B, N = 4, 4


class Engine(ScriptedEngine):
    """Slow enough for a fault to find work in flight; weights come in two buckets."""

    async def generate(self, prompt_ids, images, sampling):
        await asyncio.sleep(0.05)
        return await super().generate(prompt_ids, images, sampling)

    async def start_weight_update(self):
        self.buckets = 0

    async def update_weights(self, payload):
        self.buckets += 1

    async def finish_weight_update(self, version):
        assert self.buckets == 2, "a mixture of two policies would serve"
        return await super().finish_weight_update(version)


class Worker(MockWorker):
    def __init__(self, *arguments, **options):
        super(MockWorker, self).__init__(*arguments, engine_factory=Engine, **options)


class Learner:
    """Send weights as the real one does: to all receivers at once, bucket by bucket.

    What a receiver raises is raised here.
    """

    def __init__(self):
        self.trained, self.sent = [], []

    def update(self, items):
        self.trained.append({item.question.id for item in items})
        return {"loss": 0.0}

    def send_weights(self, receivers, version):
        for method, *arguments in (
            ("start_weight_update",),
            ("update_weights", {}),
            ("update_weights", {}),
            ("finish_weight_update", version),
        ):
            asked = [getattr(receiver, method).remote(*arguments) for receiver in receivers]
            answers = ray.get(asked, timeout=20)
        assert answers == [version] * len(receivers)
        self.sent.append((version, len(receivers)))


def recipe(**rollout):
    settings = {
        "workers": 2,
        "n": N,
        "max_context_tokens": 1024,
        "cpus_per_worker": 0.1,
        "deadline_s": 20,
        "health_s": 3,
        "max_failures": 4,
    }
    return parse_recipe(
        {
            "name": "faults",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": 3,
            "questions_per_step": B,
            "rollout": settings | rollout | {"engine": {"weight_transfer": "shared_memory"}},
            "resampler": {"k": 2, "budget": {"ratio": 0.5}},
            "tools": {"servers": 2},
        }
    )


class Run:
    """Three steps under a plan."""

    def __init__(self, plan=(), **rollout):
        self.recipe, self.events = recipe(**rollout), []
        self.learner, self.tools = Learner(), start_tool_servers(self.recipe.tools)
        settings = WorkerSettings(
            MODEL,
            self.recipe.rollout,
            self.tools,
            SevenTask.verify,
            run_seed=0,
            faults=FaultPlan(plan),
        )
        self.pool = RolloutPool(settings, actor_class=Worker, log=self.log)
        tokens = self.pool.ready()
        self.resampler = start_resampler(self.recipe.resampler, tokens, N)
        self.actors = Actors(
            self.pool,
            self.tools,
            self.learner,
            Policy(self.learner, self.pool),
            self.resampler,
            tokens,
        )
        self.flow = Flow(self.recipe, SevenTask(), self.pool, self.resampler, log=self.log)
        self.processes = [
            ray.get(worker.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
            for worker in self.pool.workers
        ]

    def log(self, event, **fields):
        self.events.append({"event": event} | fields)

    @property
    def lost(self):
        return sum(event["event"] == "worker lost" for event in self.events)

    def steps(self, count=3):
        self.actors.policy.publish(0)
        return [
            train_step(self.recipe, self.actors, self.flow, step, Phases()) for step in range(count)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.flow.close()
        self.pool.shutdown()
        self.tools.shutdown()
        ray.kill(self.resampler.actor)
        until(lambda: not any(map(alive, self.processes)))
        assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}

    def check(self, results, lost):
        """Check what a run of faults must not change.

        Every question is trained on exactly once, in complete groups of the current policy, and as
        many workers were lost as expected.
        """
        questions = B * len(results)
        assert balance(self.events) == Balance(questions, questions, 0, 0)
        for step, (result, trained) in enumerate(zip(results, self.learner.trained, strict=True)):
            assert trained == {f"q{i}" for i in range(B * step, B * step + B)}
            assert policy_versions(result.batch) == {step}
            for group in result.batch.groups:
                assert [t.rollout for t in group.rollouts] == list(range(N))
        if lost:  # a silent one is noticed after `health_s`, which three steps may not take
            until(lambda: self.lost >= lost)
        assert self.lost == lost


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        ignore_reinit_error=True,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("fault", "lost"),
    [
        (Fault(0, "turn", 3, "kill"), 1),
        (Fault(0, "tool", 2, "kill"), 1),
        (Fault(1, "turn", 2, "freeze"), 1),
        (Fault(0, "turn", 2, "raise"), 0),
        (Fault(0, "ping", 1, "raise"), 1),
        (Fault(0, "ping", 1, "hang"), 1),
        (Fault(1, "weights", 2, "kill"), 1),
        (Fault(1, "weights", 4, "kill"), 1),
        (Fault(0, "weights", 3, "raise"), 1),
        (Fault(0, "weights", 4, "hang"), 1),
    ],
    ids=lambda value: (
        f"{value.kind} at {value.point} {value.visit}" if isinstance(value, Fault) else ""
    ),
)
def test_a_fault_costs_time_and_nothing_else(fault, lost):
    with Run([fault]) as run:
        run.check(run.steps(), lost)
        # The replacement got the weights alone, or with all others.
        assert run.learner.sent[-1][0] == 3


def test_a_tool_that_never_returns_is_cut_and_run_again():
    with Run([Fault(0, "tool", 1, "hang")], deadline_s=3) as run:
        run.check(run.steps(1), 0)


def test_two_workers_dead_at_once():
    with Run([Fault(worker, "turn", 3, "kill") for worker in (0, 1)]) as run:
        run.check(run.steps(), 2)


def test_a_tool_server_killed():
    with Run() as run:
        pid = ray.get(
            run.tools.servers[0].__ray_call__.remote(lambda self: os.getpid()), timeout=30
        )
        os.kill(pid, signal.SIGKILL)
        run.check(run.steps(1), 0)


def test_an_object_store_nearly_full():
    with Run() as run:
        ballast = [ray.put(np.zeros(10 * 2**20, np.uint8)) for _ in range(9)]  # of 100 MiB
        run.check(run.steps(1), 0)
        del ballast


def test_too_many_faults_stop_the_run_clearly():
    plan = [Fault(worker, "turn", 2, "kill") for worker in range(8)]
    with (
        Run(plan, max_failures=2) as run,
        pytest.raises(WorkersFailed, match=r"3 rollout workers were lost, rollout\.max_failures=2"),
    ):
        run.steps()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_seeded_storm(seed):
    plan = FaultPlan.seeded(seed, workers=3, count=6, visits=12)
    with Run(plan.faults, max_failures=20, retries=3) as run:
        results = run.steps()
        balanced = balance(run.events)
        assert balanced.trained + balanced.dropped == balanced.dispatched == 3 * B
        trained = [group.question.id for result in results for group in result.batch.groups]
        assert len(set(trained)) == balanced.trained
