"""A training flow over real workers whose tools show images."""

import numpy as np
import pytest
import ray

from axpo.training.cursor import load_cursor
from axpo.training.flow import Flow
from learner.credit import credit
from rollout_workers.config import RolloutConfig
from rollout_workers.images import fetched
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tests.axpo.helpers import TOKENS
from tests.axpo.training.local import Task, local_resampler, recipe
from tests.rollout_workers.helpers import picture
from tests.rollout_workers.showing import SIDE, ShowingWorker, store_holds

pytestmark = [pytest.mark.engine]
CROPS = 4 * (0 + 1 + 2)
"""Of a step: rollout i of each of its four questions shows i."""


@pytest.fixture
def flow(cluster):
    config = RolloutConfig(workers=2, n=3, concurrency=8, cpus_per_worker=0.1, health_s=1.5)
    settings = WorkerSettings("", config, None, None, run_seed=0)
    pool = RolloutPool(settings, actor_class=ShowingWorker)
    pool.ready()
    events = []
    grpo = recipe(algorithm="grpo")
    made = Flow(
        grpo,
        Task(),
        pool,
        local_resampler(grpo),
        lambda event, **fields: events.append((event, fields)),
    )
    made.events = events
    yield made
    pool.shutdown()


def step_of(flow, step):
    """Make a step as `train_step` does, with a learner that fetches what is trained."""
    flow.feed(step)
    batch = flow.take(step)
    items = credit(batch.groups, TOKENS)
    shown = fetched([image for item in items for image in item.trajectory.images])
    return batch, shown


def test_the_object_store_is_as_full_after_each_step(flow):
    for step in range(4):
        batch, shown = step_of(flow, step)
        assert len(shown) == CROPS
        assert store_holds(CROPS)
        del batch, shown
        assert store_holds(0)


def test_a_group_whose_images_were_lost_is_dropped_and_counted(flow, monkeypatch):
    flow.feed(0)
    group = next(iter(flow._in_flight)).result.result(60)
    gone = group.rollouts[1].images[0].objects
    real = ray.get

    def get(reference, timeout=None):
        if reference == gone:
            raise ray.exceptions.ObjectLostError("id", None, "")
        return real(reference, timeout=timeout)

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(ray, "get", get)
    batch = flow.take(0)
    assert (len(batch.groups), batch.dropped) == (3, 1)
    dropped = [fields for event, fields in flow.events if event == "dropped"]
    assert dropped == [{"question": group.question.id, "step": 0, "reason": "infrastructure"}]


def test_the_pixels_are_those_that_the_tool_showed(flow):
    batch, _ = step_of(flow, 0)
    for group in batch.groups:
        first, second = fetched(group.rollouts[2].images)
        assert np.array_equal(first, picture(20, SIDE))
        assert np.array_equal(second, picture(21, SIDE))


def test_a_checkpoint_has_the_pixels_of_groups_that_are_not_trained(flow, tmp_path):
    flow.feed(0)
    for asked in flow._in_flight:
        asked.result.result(60)
    flow.cursor.save(tmp_path)
    restored = load_cursor(tmp_path)
    assert len(restored.kept) == 4
    for kept in restored.kept:
        (crop,) = kept.group.rollouts[1].images
        assert np.array_equal(crop, picture(10, SIDE))
