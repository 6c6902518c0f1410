"""A rollout worker without engine or tools, whose trajectories show crops."""

from __future__ import annotations

import gc
import time

import numpy as np
import ray

from rollout_workers.pictures import Pictures
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    PolicySegment,
    Resample,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
)
from tests.rollout_workers.helpers import picture

SIDE = 400
"""480 kB: Ray keeps such an object in its store; less than 100 kB would travel in a message."""
CROP_BYTES = SIDE * SIDE * 3


def policy():
    return PolicySegment(np.arange(2, dtype=np.int32), np.full(2, -0.5, np.float32), 0)


def observation(*images):
    return ObservationSegment(np.arange(1, dtype=np.int32), images)


def trajectory(segments, rollout=0, fork=None, question="q"):
    return Trajectory(
        question, rollout, np.ones(1, np.int32), segments, EndReason.ANSWERED, reward=1.0, fork=fork
    )


class ShowingWorker:
    """Rollout i has i crops of its own; a continuation has its prefix's crop and a new one."""

    def __init__(self, index, settings):
        self.index = index

    async def ready(self):
        return SpecialTokens(*range(9))

    async def ping(self):
        pass

    async def rollout(self, question, n, step, *, temperature=None, evaluating=False):
        if "garbage" in question.info and self.index == 0:
            return "no group"
        rollouts = []
        for i in range(n):
            crops = [observation(picture(seed, SIDE)) for seed in range(10 * i, 11 * i)]
            shown = (policy(), *crops, policy())
            rollouts.append(trajectory(shown, i, question=question.id))
        return Group(question, tuple(rollouts), self.index)

    async def fork(self, question, source, request, step):
        if request.min_distinct_calls > request.k:
            return Resample(source.rollout, request.prefix_tokens, ())
        prefix = frozen_prefix(source, request.prefix_tokens)
        shown = await Pictures([]).shown([prefix[1].images[0]])
        made = []
        for k in range(request.k):
            seen = observation(np.asarray(shown[0].image)[::-1])
            point = ForkPoint(source.rollout, k, request.prefix_tokens)
            made.append(trajectory((*prefix, seen, policy()), source.rollout, point))
        return Resample(source.rollout, request.prefix_tokens, tuple(made))

    async def shutdown(self):
        pass


def stored_bytes() -> float:
    """Return what lies in the object store of this node, as of a moment ago."""
    total, free = ray.cluster_resources(), ray.available_resources()
    return total["object_store_memory"] - free["object_store_memory"]


def store_holds(crops: int, seconds: float = 20.0) -> bool:
    """Return whether the object store soon holds so many crops, and little else."""
    gc.collect()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        # Neither a half of a crop more, nor of one less.
        if abs(stored_bytes() / CROP_BYTES - crops) < 0.5:
            return True
        time.sleep(0.1)
    return False
