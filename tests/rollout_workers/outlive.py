"""A pool that outlives its Ray session; `test_pool.py` runs this in a process of its own.

    python -m tests.rollout_workers.outlive [again]

The pool must stop by itself and call Ray no more: a call would start another session. With `again`
there is another session at once, in which the old actors mean nothing.
"""

import sys
import time

import pytest
import ray

from rollout_workers.config import RolloutConfig
from rollout_workers.fleet import WorkersFailed
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import Question
from tests.rollout_workers.test_pool import MockWorker, reward


def start_session():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")


def main(*, again: bool) -> None:
    start_session()
    config = RolloutConfig(workers=2, n=2, cpus_per_worker=0.1, health_s=0.9)
    settings = WorkerSettings("model", config, None, reward, run_seed=0)
    pool = RolloutPool(settings, actor_class=MockWorker)
    pool.ready()
    ray.kill(pool.workers[0])  # one is being replaced
    in_flight = pool.run(pool.group(Question("slow", "?", (), "7", {"seconds": 60}), 0))
    ray.shutdown()
    if again:
        start_session()
    with pytest.raises(WorkersFailed, match="session of the rollout workers has ended"):
        in_flight.result(30)
    time.sleep(1.5)  # a keeper that still called Ray would do it now
    assert ray.is_initialized() is again
    pool.shutdown()
    assert ray.is_initialized() is again
    print("ended")


if __name__ == "__main__":
    main(again=sys.argv[1:] == ["again"])
