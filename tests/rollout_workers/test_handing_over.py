"""Tool images on their way: out of a worker, past the driver, to whoever shows them."""

import asyncio
import os
import pickle
import signal
import time

import numpy as np
import pytest
import ray

from rollout_workers.config import RolloutConfig
from rollout_workers.handing_over import actor_of, with_references
from rollout_workers.images import ImagesLost, StoredImage, digest_of, fetched
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import Group, Question, pixels
from tests.rollout_workers.helpers import picture
from tests.rollout_workers.showing import (
    SIDE,
    ShowingWorker,
    observation,
    policy,
    store_holds,
    trajectory,
)

QUESTION = Question("q", "?", (), "7")
GARBLED = Question("q", "?", (), "7", {"garbage": True})
REQUEST = ForkRequest(0, prefix_tokens=5, k=2)


@pytest.fixture
def pool(cluster):
    config = RolloutConfig(workers=1, n=3, concurrency=8, cpus_per_worker=0.1, health_s=1.5)
    settings = WorkerSettings("", config, None, None, run_seed=0)
    made = RolloutPool(settings, actor_class=ShowingWorker)
    yield made
    made.shutdown()


def group_of(pool, question=QUESTION):
    pool.ready()
    return pool.run(pool.group(question, 0)).result(60)


def fork(pool, group, request=REQUEST):
    return pool.run(pool.fork(group, request, 0)).result(60)


def kill(pool):
    pid = ray.get(pool.workers[0].__ray_call__.remote(lambda self: os.getpid()), timeout=30)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while pool.take_stats()["workers_lost"] == 0 and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_worker_hands_over_pixels_beside_a_group_without_any():
    worker = actor_of(ShowingWorker)(4, None)
    group, *objects = asyncio.run(worker.rollout(QUESTION, 3, 0))
    assert (group.worker, [len(images) for images in objects]) == (4, [0, 1, 2])
    assert np.array_equal(objects[2][1], picture(21, SIDE))
    images = [image for t in group.rollouts for image in t.images]
    assert [(image.place, image.height, image.width) for image in images] == [
        (0, SIDE, SIDE),
        (0, SIDE, SIDE),
        (1, SIDE, SIDE),
    ]
    assert images[2].digest == digest_of(picture(21, SIDE))
    assert len(pickle.dumps(group)) < 5_000
    # Tokens are as they were.
    assert group.rollouts[2].response_ids.tolist() == [0, 1, 0, 0, 0, 1]


def test_an_answer_that_is_no_group_has_as_many_values():
    garbage = asyncio.run(actor_of(ShowingWorker)(0, None).rollout(GARBLED, 3, 0))
    assert garbage == ("no group", (), (), ())


def test_images_that_have_a_reference_keep_it():
    first = StoredImage("a", 1, 1, 0, objects="theirs")
    second = StoredImage("b", 1, 1, 0)
    (changed,) = with_references([trajectory((policy(), observation(first, second)))], ["new"])
    assert [image.objects for image in changed.images] == ["theirs", "new"]


@pytest.mark.engine
def test_images_outlive_their_worker_and_go_with_their_group(pool):
    assert store_holds(crops=0)
    group, reference = group_of(pool)
    # What the resampler is given has neither pixels nor references.
    assert all(image.objects is None for image in ray.get(reference).rollouts[2].images)
    kill(pool)
    images = group.rollouts[2].images
    first, second = fetched(images)
    assert np.array_equal(first, picture(20, SIDE))
    assert np.array_equal(second, picture(21, SIDE))
    # The replacement forks a source that it has never seen.
    resample = fork(pool, group_with(group, 1))
    for continuation in resample.continuations:
        old, new = continuation.images
        assert old is not new
        assert old.objects == group.rollouts[1].images[0].objects
        assert np.array_equal(pixels(new), picture(10, SIDE)[::-1])
    del continuation, old, new, images, first, second
    assert store_holds(crops=5)
    del group, reference, resample
    assert store_holds(crops=0)


def group_with(group, source):
    """Return the group with a source whose second segment shows a crop, as rollout 0."""
    chosen = group.rollouts[source]
    return Group(group.question, (trajectory((*chosen.segments[:2], policy()), 0),), group.worker)


@pytest.mark.engine
def test_a_fork_whose_continuations_agree_has_no_images(pool):
    group, _ = group_of(pool)
    none = fork(pool, group_with(group, 1), ForkRequest(0, 5, k=2, min_distinct_calls=3))
    assert none.continuations == ()


@pytest.mark.engine
def test_garbage_is_found_out(pool):
    group, _ = group_of(pool, GARBLED)
    assert (group.worker, len(group.rollouts)) == (1, 3)


@pytest.mark.engine
def test_images_that_cannot_be_fetched_are_lost(cluster, monkeypatch):
    @ray.remote(num_cpus=0)
    def never():
        time.sleep(60)

    monkeypatch.setattr("rollout_workers.images.FETCH_S", 0.2)
    with pytest.raises(ImagesLost, match="GetTimeoutError"):
        fetched([StoredImage("a", 1, 1, 0, never.remote())])
