"""The policy: the learner that changes it, the engines that serve it, and the version of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray.exceptions import RayError

from learner.credit import TrainItem
from learner.learner import Learner, RanksLost
from rollout_workers.fleet import Asleep
from rollout_workers.pool import RolloutPool

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class Policy:
    """Update the policy, and bring the update to the engines.

    One call to the learner at a time: an update, or weights to engines. `version` counts the
    updates of the learner's weights.
    """

    def __init__(self, learner: Learner, pool: RolloutPool, *, colocated: bool = False) -> None:
        self.version = 0
        self._served: int | None = None  # the version that all engines were last brought to
        self._learner = learner
        self._pool = pool
        self._colocated = colocated
        # Colocated engines have loaded, and gave their memory to the ranks.
        self._asleep = colocated
        self._lock = threading.Lock()
        pool.join_with(self._welcome)

    def update(self, items: Sequence[TrainItem]) -> dict[str, float]:
        """Make one optimizer step; return {} if there is nothing to train on.

        The engines go on with the version that they have.
        """
        with self._lock:
            self._give_to_learner()
            try:
                return self._learner.update(items) if items else {}
            finally:
                self.version += 1

    def publish(self, version: int | None = None) -> None:
        """Bring every engine to the learner's weights.

        An engine that is lost on the way is replaced, and the others get the whole update again.

        Args:
            version: what to call the weights, after a resume; None: the present version.

        Raises:
            WorkersFailed: too many engines were lost.
            RanksLost: the ranks ended with an engine, see `Learner.send_weights`.
            RayError, TimeoutError: what the learner raised, if no engine is to blame.
        """
        with self._lock:
            if version is not None:
                self.version = version
            self._give_to_engines()
            self._served = self.version

    def catch_up(self) -> None:
        """Bring the engines to the learner's weights if they do not have them."""
        if self._served != self.version:
            self.publish()

    @contextmanager
    def learner_alone(self) -> Iterator[Learner]:
        """Lend the learner for a call that needs its memory, such as a checkpoint.

        Colocated engines sleep meanwhile; nothing may be in flight.
        """
        with self._lock:
            was_asleep = self._asleep
            self._give_to_learner()
            yield self._learner
            if self._asleep and not was_asleep:
                self._give_to_engines()

    def _give_to_learner(self) -> None:
        """Let colocated engines sleep, and give their memory to the ranks."""
        if not self._colocated or self._asleep:
            return
        self._pool.sleep()
        self._learner.reclaim_memory()
        self._asleep = True

    def _give_to_engines(self) -> None:
        """Bring all engines to the learner's weights; if they sleep, give them their memory."""
        if not self._asleep:
            self._send_to_all()
            return
        # The weights go from the ranks' memory to the engines'. The cache needs the ranks' share.
        self._pool.wake("weights")
        self._send_to_all()
        self._learner.release_memory()
        self._pool.wake("kv_cache")
        self._asleep = False

    def _send_to_all(self) -> None:
        while True:
            workers = self._pool.workers
            try:
                # Without any worker left, the replacements get the weights from `_welcome`.
                if workers:
                    self._learner.send_weights(workers, self.version)
                return
            except (RayError, TimeoutError):
                # Sort out who is to blame: an engine that is gone now, or the learner.
                self._pool.check()
                if workers == self._pool.workers:
                    raise

    def _welcome(self, worker: ActorHandle) -> None:
        """Give the weights to an engine that replaces a lost one.

        Raises:
            Asleep: it has loaded, but sleeps with the others now.
        """
        with self._lock:
            if self._asleep:
                raise Asleep
            try:
                self._learner.send_weights([worker], self.version)
            except RanksLost as error:
                # No replacement will ever get the weights.
                self._pool.fail(str(error))
                raise
