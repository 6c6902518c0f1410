"""The policy: the learner that changes it and the engines that serve it, and which version each of them has."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError

from learner.credit import TrainItem
from learner.learner import Learner
from rollout_workers.pool import RolloutPool


class Policy:
    """One call to the learner at a time: an update, or weights to engines. `version` counts the updates of the learner's weights."""

    def __init__(self, learner: Learner, pool: RolloutPool, colocated: bool = False) -> None:
        self.version = 0
        self._learner, self._pool, self._colocated = learner, pool, colocated
        self._asleep = False
        self._lock = threading.Lock()
        pool.join_with(self._welcome)

    def update(self, items: Sequence[TrainItem]) -> dict[str, float]:
        """One optimizer step; {} where there is nothing to train on. The engines go on with the version they have."""
        with self._lock:
            if self._colocated:
                self._pool.sleep()
                self._asleep = True
            try:
                return self._learner.update(items) if items else {}
            finally:
                self.version += 1

    def publish(self, version: int | None = None) -> None:
        """Bring every engine to the learner's weights (`version`: what to call them, after a resume).

        An engine that is lost on the way is replaced, and the others get the whole update again. Raises what the learner raised
        where no engine is to blame, or WorkersFailed.
        """
        with self._lock:
            self.version = self.version if version is None else version
            if self._asleep:
                self._pool.wake("weights")
            while True:
                handles = self._pool.workers
                try:
                    if handles:
                        self._learner.send_weights(handles, self.version)
                    break
                except (RayError, TimeoutError):
                    self._pool.check()
                    if handles == self._pool.workers:
                        raise
            if self._asleep:
                self._pool.wake("kv_cache")
                self._asleep = False

    def _welcome(self, worker: Any) -> None:
        """Weights for an engine that replaces a lost one."""
        with self._lock:
            self._learner.send_weights([worker], self.version)
