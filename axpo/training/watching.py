"""Notice ranks that end while nobody calls them: a step waits for rollouts, and not for ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import ActorDiedError, RayError

from learner.learner import Learner, RanksLost
from rollout_workers.causes import cause_of
from rollout_workers.fleet import WorkersFailed
from rollout_workers.pool import RolloutPool

EVERY_S = 5.0
"""Seconds between two looks."""


@contextmanager
def ranks_watched(learner: Learner, pool: RolloutPool) -> Iterator[None]:
    """Let the block end if ranks have ended, although it may be waiting for rollouts.

    Raises:
        RanksLost: a rank has ended, by itself or with its node.
    """
    over = threading.Event()
    lost: list[str] = []

    def watch() -> None:
        signs = learner.signs_of_life()
        while not over.wait(EVERY_S):
            answered, open_signs = ray.wait(signs, num_returns=len(signs), timeout=0)
            lost.extend(reason for reason in map(_end, answered) if reason)
            if lost:
                return pool.fail(lost[0])
            if not open_signs:
                signs = learner.signs_of_life()

    thread = threading.Thread(target=watch, name="ranks-watched", daemon=True)
    thread.start()
    try:
        yield
    except WorkersFailed as error:
        if lost:
            raise RanksLost(f"a rank of the learner ended: {lost[0]}") from error
        raise
    finally:
        over.set()
        thread.join()


def _end(sign: ray.ObjectRef) -> str:
    """Return why the rank that was asked has ended; an empty text if it has not."""
    try:
        ray.get(sign)
    except ActorDiedError as error:
        return cause_of(error)
    except RayError:
        return ""  # not reached for now, for example: it is asked again
    return ""
