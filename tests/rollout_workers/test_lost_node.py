"""What becomes of tool images whose node is lost."""

import time

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from rollout_workers.handing_over import have_their_images
from rollout_workers.images import ImagesLost, StoredImage, fetched
from rollout_workers.trajectory import Group, Question
from tests.rollout_workers.helpers import picture
from tests.rollout_workers.showing import SIDE, observation, policy, trajectory

pytestmark = [pytest.mark.engine]


class Showing:
    async def rollout(self, side):
        return "group", (picture(1, side),)


@pytest.fixture
def nodes():
    """Yield a cluster of two nodes; the other one has the resource `other`."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1, resources={"other": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, other
    ray.shutdown()
    cluster.shutdown()


def group_of(worker, side=SIDE):
    """Return a group with an image that a worker hands over."""
    group, images = worker.rollout.options(num_returns=2).remote(side)
    assert ray.get(group, timeout=60) == "group"
    image = StoredImage("a", side, side, 0, images)
    rollout = trajectory((policy(), observation(image), policy()))
    return Group(Question("q", "?", (), "7"), (rollout,), 0)


def image_of(group):
    (image,) = group.rollouts[0].images
    return image


def test_images_that_only_a_lost_node_kept_are_lost_and_nobody_waits_for_them(nodes):
    cluster, other = nodes
    worker = ray.remote(Showing).options(resources={"other": 1}).remote()
    lost, looked_at, small = group_of(worker), group_of(worker), group_of(worker, side=20)
    groups = [lost, looked_at, small]
    # What this node has fetched while somebody holds it, it keeps; small ones came in a message.
    copy = fetched([image_of(looked_at)])
    assert have_their_images(groups) == [True, True, True]
    cluster.remove_node(other)
    deadline = time.monotonic() + 60
    while have_their_images(groups)[0] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert have_their_images(groups) == [False, True, True]
    assert np.array_equal(copy[0], picture(1, SIDE))
    begun = time.monotonic()
    with pytest.raises(ImagesLost, match="images of tools are lost: "):
        fetched([image_of(lost)])
    assert time.monotonic() - begun < 5
