"""Groups are released when they are trained, and the driver's memory stays flat."""

import gc
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from axpo.training.flow import Flow
from learner.credit import credit
from tests.axpo.helpers import TOKENS
from tests.axpo.training.local import (
    Pool,
    Task,
    local_resampler,
    recipe,
    resampling,
    start,
    step_of,
)

MIB = 2**20
PAGE = 4096
SIDE = 512
"""Height and width of a crop: 0.8 MB, so that a group that is kept shows."""


class PicturePool(Pool):
    """Every rollout that zooms has a crop of its own."""

    def rollouts(self, index):
        rollouts = super().rollouts(index)
        return [rollouts[0], *[with_crop(rollout, index) for rollout in rollouts[1:]]]


def with_crop(rollout, value):
    call, observation, answer = rollout.segments
    crop = np.full((SIDE, SIDE, 3), value % 256, np.uint8)
    return replace(rollout, segments=(call, replace(observation, images=(crop,)), answer))


def resident():
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def kept(rollouts):
    """Return which of some weak references still have their object.

    The pool's thread drops its own a moment after the trainer's has the group.
    """
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(rollout() is not None for rollout in rollouts):
        time.sleep(0.01)
    return [i for i, rollout in enumerate(rollouts) if rollout() is not None]


@pytest.fixture
def no_collections():
    """A group that only a search for cycles would free counts as kept."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "grpo"},
        {"resampler": resampling(schedule="streaming")},
        {"resampler": resampling(schedule="carry")},
        {"dynamic_sampling": True},
        {"max_staleness": 1},
    ],
    ids=["batch", "grpo", "streaming", "carry", "dynamic", "asynchronous"],
)
def test_a_group_is_released_with_its_step(settings, no_collections):
    flow, _, _ = start(PicturePool(easy=(1, 5)), **settings)
    # What is carried is trained with the next step.
    later = settings.get("resampler", {}).get("schedule") == "carry"
    last, count = [], 0
    for step in range(4):
        taken = step_of(flow, step)
        credit(taken.groups, TOKENS, carried=taken.carried)
        rollouts = []
        for group in taken.finished:
            rollouts += [weakref.ref(rollout) for rollout in group.rollouts]
        del taken, group
        assert kept(last if later else rollouts) == []
        last, count = rollouts, count + len(rollouts)
    assert count >= 3 * 4 * 4


def test_a_straggler_keeps_no_group_of_its_batch(no_collections):
    pool = PicturePool(seconds={0: 30.0})
    flow, _, _ = start(pool, max_staleness=1, algorithm="grpo")
    taken = step_of(flow, 0)
    rollouts = [weakref.ref(group.rollouts[1]) for group in taken.groups]
    assert pool.in_flight > 0
    del taken
    assert kept(rollouts) == []
    assert pool.in_flight > 0


def test_two_hundred_steps_take_no_more_memory_than_twenty():
    settings = recipe(
        steps=201,
        resampler=resampling(schedule="streaming", budget={"ratio": 0.5}),
        max_staleness=1,
    )
    pool = PicturePool(seconds=dict.fromkeys(range(201 * 4), 0.001), broken=range(0, 800, 37))
    flow = Flow(settings, Task(), pool, local_resampler(settings))
    sizes = []
    for step in range(200):
        taken = step_of(flow, step)
        items = credit(taken.groups, TOKENS)
        del taken, items
        sizes.append(resident())
    # Four groups with two crops each are 6 MB a step: 180 steps would be 1.1 GB.
    grown = max(sizes[-20:]) - max(sizes[20:40])
    assert grown < 8 * MIB
