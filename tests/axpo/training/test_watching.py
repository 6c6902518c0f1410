"""Ranks that end while nobody calls them."""

import threading

import pytest
import ray

from axpo.training import watching
from learner.learner import RanksLost
from rollout_workers.fleet import WorkersFailed

pytestmark = pytest.mark.engine


@ray.remote(num_cpus=0)
class Rank:
    def work(self):
        threading.Event().wait(2)


class Learner:
    def __init__(self):
        self.ranks = [Rank.remote(), Rank.remote()]

    def signs_of_life(self):
        return [rank.__ray_ready__.remote() for rank in self.ranks]


class Pool:
    """Who waits for a group of it waits for ever, until it fails."""

    def __init__(self):
        self.failed = threading.Event()
        self.why = ""

    def fail(self, why):
        self.why = why
        self.failed.set()

    def wait(self):
        """Wait, as a step does."""
        if not self.failed.wait(60):
            raise TimeoutError
        raise WorkersFailed(self.why)


@pytest.fixture
def parts(cluster, monkeypatch):
    monkeypatch.setattr(watching, "EVERY_S", 0.1)
    learner, pool = Learner(), Pool()
    ray.get(learner.signs_of_life())
    return learner, pool


def wait(learner, pool):
    with watching.ranks_watched(learner, pool):
        pool.wait()


def test_who_waits_for_rollouts_hears_of_a_rank_that_ended(parts):
    learner, pool = parts
    threading.Timer(0.5, ray.kill, [learner.ranks[1]]).start()
    with pytest.raises(RanksLost, match="a rank of the learner ended: "):
        wait(learner, pool)


def test_ranks_that_work_are_left_alone(parts):
    learner, pool = parts
    with watching.ranks_watched(learner, pool):
        ray.get([rank.work.remote() for rank in learner.ranks])
    assert not pool.failed.is_set()


def test_workers_that_failed_by_themselves_are_told_as_such(parts):
    learner, pool = parts
    pool.fail("too many")
    with pytest.raises(WorkersFailed, match="too many"):
        wait(learner, pool)
