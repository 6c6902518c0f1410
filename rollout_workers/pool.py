"""The driver's view of the rollout workers: start them, spread questions over them, take groups as they finish."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from rollout_workers.config import RolloutConfig
from rollout_workers.trajectory import Group, Question, SpecialTokens
from rollout_workers.worker import RolloutWorker, Tools, Verify

START_DEADLINE_S = 900.0
"""Seconds for engines to load a model (an 8B model from a cold disk takes minutes)."""
_SCORING_MARGIN_S = 120.0


class RolloutPool:
    """`workers` are the actor handles, in the order of `Group.worker`. They start side by side; nothing waits for them yet."""

    def __init__(
        self,
        model: str,
        config: RolloutConfig,
        tools: Tools,
        system: str | None,
        verify: Verify,
        run_seed: int,
        want_entropies: bool = False,
        actor_class: type = RolloutWorker,
    ) -> None:
        """`actor_class` stands in for RolloutWorker in tests without an engine."""
        actor = ray.remote(actor_class).options(num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker)
        self.workers = [
            actor.remote(index, model, config, tools, system, verify, run_seed, want_entropies) for index in range(config.workers)
        ]
        self._config = config
        self._tokens: SpecialTokens | None = None

    def ready(self) -> SpecialTokens:
        """Wait until every engine serves. Raises what a worker's start raised, or TimeoutError."""
        if self._tokens is None:
            self._tokens = ray.get([worker.ready.remote() for worker in self.workers], timeout=START_DEADLINE_S)[0]
        return self._tokens

    def rollout(self, questions: Sequence[Question], step: int, n: int | None = None, temperature: float | None = None) -> Iterator[Group]:
        """Groups in order of completion. Each question goes to the worker with the fewest groups in flight; a worker has
        enough of them to fill its slots and one more.

        Raises a dead worker's RayActorError, or TimeoutError where no group finished although every rollout's deadline has passed.
        """
        self.ready()
        n = n or self._config.n
        per_worker = math.ceil(self._config.concurrency / n) + 1
        waves = math.ceil(per_worker * n / self._config.concurrency)
        patience = waves * (1 + self._config.retries) * self._config.deadline_s + _SCORING_MARGIN_S
        waiting = deque(questions)
        flying: dict[Any, int] = {}
        load = [0] * len(self.workers)
        try:
            while waiting or flying:
                while waiting and min(load) < per_worker:
                    index = load.index(min(load))
                    flying[self.workers[index].rollout.remote(waiting.popleft(), n, step, temperature)] = index
                    load[index] += 1
                done, _ = ray.wait(list(flying), num_returns=1, timeout=patience)
                if not done:
                    raise TimeoutError(f"step {step}: no group of {len(flying)} in flight finished within {patience:.0f} s")
                load[flying.pop(done[0])] -= 1
                yield ray.get(done[0], timeout=_SCORING_MARGIN_S)
        finally:
            for ref in flying:
                ray.cancel(ref)

    def shutdown(self) -> None:
        """End engines and actors; a worker that is dead or does not answer is killed."""
        ray.wait([worker.shutdown.remote() for worker in self.workers], num_returns=len(self.workers), timeout=20)
        for worker in self.workers:
            ray.kill(worker)
