"""In-flight updates, updates cut in the middle, and lost engines, on real vLLM.

One pool serves the tests in file order.
"""

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import EndReason, ObservationSegment, Question, Trajectory
from tests.rollout_workers.helpers import picture
from tests.rollout_workers.test_engine import (
    CONFIG,
    Tools,
    engine_processes,
    get,
    halves,
    new_weights,
    reward,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
__all__ = ["new_weights"]  # a fixture
# 400 tokens a turn: long enough for an update to find turns in the middle.
UPDATES = CONFIG.model_copy(
    update={"in_flight_updates": True, "max_turn_tokens": 400, "health_s": 10.0, "n": 2}
)
QUESTION = Question("q1", "what is the digit in the red frame? ", (picture(0, 128),), "7")


@pytest.fixture(scope="module")
def pool(cluster: None, model: str) -> Iterator[RolloutPool]:
    settings = WorkerSettings(model, UPDATES, Tools(), reward, run_seed=3, system="look closely")
    pool = RolloutPool(settings)
    pool.ready()
    yield pool
    pool.shutdown()


def update(worker, buckets, version):
    get(worker.init_weight_transfer.remote({}))
    get(worker.start_weight_update.remote())
    for bucket in buckets:
        get(worker.update_weights.remote(bucket))
    return get(worker.finish_weight_update.remote(version))


def versions_of(trajectory: Trajectory) -> list[int]:
    """The policy versions of a trajectory's policy segments."""
    segments = [s for s in trajectory.segments if not isinstance(s, ObservationSegment)]
    return [segment.policy_version for segment in segments]


def tokens(group) -> list[list[int]]:
    return [t.response_ids.tolist() for t in group.rollouts]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_rollouts_are_the_same(pool):
    """The seeds decide: not even the tokens differ from a run without the fault."""
    (expected,) = pool.rollout([QUESTION], step=7)
    worker = pool.workers[0]
    pid = get(worker.__ray_call__.remote(lambda self: os.getpid()))
    engines = engine_processes(worker)
    future = pool.run(pool.group(QUESTION, 7))
    deadline = time.monotonic() + 60
    while not get(worker.engine_stats.remote())["running"]:
        assert time.monotonic() < deadline
    os.kill(pid, signal.SIGKILL)
    group, _ = future.result(300)
    assert group.worker == 1
    assert tokens(group) == tokens(expected)
    assert not [p for p in engines if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_an_engine_that_freezes_is_replaced(pool):
    (before,) = pool.rollout([QUESTION], step=7)
    engine = next(p for p in engine_processes(pool.workers[0]) if "EngineCore" in p.name())
    future = pool.run(pool.group(QUESTION, 8))
    engine.suspend()
    group, _ = future.result(300)
    assert all(t.reward is not None for t in group.rollouts)
    assert group.worker == before.worker + 1
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_an_update_cuts_turns_and_the_next_policy_goes_on(pool, new_weights, tmp_path):
    worker = pool.workers[0]
    update(worker, halves(new_weights, tmp_path / "1"), 1)
    future = pool.run(pool.group(QUESTION, 9, 8))
    deadline = time.monotonic() + 60
    while not get(worker.engine_stats.remote())["running"]:
        assert time.monotonic() < deadline
    time.sleep(0.5)
    begun = time.monotonic()
    scaled = {name: tensor * 0.9 for name, tensor in new_weights.items()}
    assert update(worker, halves(scaled, tmp_path / "2"), 2) == 2
    paused = time.monotonic() - begun
    group, _ = future.result(300)
    versions = [versions_of(trajectory) for trajectory in group.rollouts]
    print(f"\nupdate in {paused:.2f} s; versions of the segments: {versions}")
    assert [1, 2] in [v[:2] for v in versions]  # a turn begun by version 1 and ended by 2
    for t in group.rollouts:
        assert t.end in (
            EndReason.ANSWERED,
            EndReason.OUT_OF_TOKENS,
            EndReason.OUT_OF_TURNS,
            EndReason.MALFORMED_CALL,
        )
        assert (t.logprobs[t.policy_mask] < 0).all()
        first_turn = len(t.segments[0].token_ids)
        if versions[t.rollout][:2] == [1, 2]:
            first_turn += len(t.segments[1].token_ids)
        assert first_turn <= 400


def test_an_update_cut_in_the_middle_is_forgotten(pool, new_weights, tmp_path):
    worker = pool.workers[0]
    get(worker.start_weight_update.remote())
    cut = halves({k: v * 3.0 for k, v in new_weights.items()}, tmp_path / "cut")
    get(worker.update_weights.remote(cut[0]))
    held_back = pool.run(pool.group(QUESTION, 10))
    buckets = halves(new_weights, tmp_path / "whole")
    assert update(worker, buckets, 3) == 3
    assert [get(worker.differing_weights.remote(bucket)) for bucket in buckets] == [[], []]
    group, _ = held_back.result(120)
    assert {version for t in group.rollouts for version in versions_of(t)} == {3}


def test_forks_of_one_engine_come_from_its_cache(pool):
    async def fork():
        group, _ = await pool.group(QUESTION, 11)
        source = max(group.rollouts, key=lambda t: len(t.segments[0].token_ids))
        request = ForkRequest(source.rollout, len(source.segments[0].token_ids) // 2, k=3)
        return source, await pool.fork(group, request, 11)

    source, resample = pool.run(fork()).result(300)
    stats = resample.continuations[0].stats
    assert stats.cached_tokens == (stats.prompt_tokens - 1) // 32 * 32
    assert len({c.response_ids.tobytes() for c in resample.continuations}) == 3
    prefix = source.response_ids[: resample.prefix_tokens]
    for continuation in resample.continuations:
        assert np.array_equal(continuation.response_ids[: len(prefix)], prefix)
