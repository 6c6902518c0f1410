"""Many engines on this machine by simulation: real Ray actors and the real pool, resampler and flow; engines that only wait.

How long a group takes is drawn from a log-normal fitted to the durations of the three-turn groups that `bench_engine` measured in the
same run. What is real is all that the driver and the resampler do: it is what would have to keep up with so many engines.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import numpy as np
import ray

from axpo.config import parse_recipe
from axpo.training.flow import Flow
from benchmarks import bench_engine
from benchmarks.engines import IN_FLIGHT, MODEL
from resampler.resampler import start_resampler
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    RolloutStats,
    SpecialTokens,
    Trajectory,
)

ENGINES = (1, 4, 16, 64)
N = 8
GROUPS_EACH = 32
"""Questions an engine: four times what it has in flight."""
TOKENS = SpecialTokens(*range(9))


class WaitingWorker:
    """A rollout worker that waits as long as a group takes, and answers with trajectories of the usual size."""

    def __init__(self, index: int, settings: WorkerSettings) -> None:
        fit: Any = settings.tools
        self.index, (self.mu, self.sigma) = index, fit
        self.room = asyncio.Semaphore(
            IN_FLIGHT // N
        )  # groups that are generated at once; others wait here, as in a real worker

    async def ready(self) -> SpecialTokens:
        return TOKENS

    async def ping(self) -> None:
        pass

    async def rollout(
        self,
        question: Question,
        n: int,
        step: int,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Group:
        rng = np.random.default_rng([int(question.id), step])
        async with self.room:
            await asyncio.sleep(_seconds(question.id, step, (self.mu, self.sigma)))
        rollouts = [
            self._trajectory(question, i, rng, float(rng.uniform() < 0.3)) for i in range(n)
        ]
        return Group(question, tuple(rollouts), self.index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        rng = np.random.default_rng([int(question.id), step, source.rollout])
        await asyncio.sleep(rng.lognormal(self.mu, self.sigma) / 2)
        forks = [
            self._trajectory(
                question,
                source.rollout,
                rng,
                float(i == 0),
                ForkPoint(source.rollout, i, request.prefix_tokens),
            )
            for i in range(request.k)
        ]
        return Resample(source.rollout, request.prefix_tokens, tuple(forks))

    async def shutdown(self) -> None:
        pass

    def _trajectory(
        self,
        question: Question,
        rollout: int,
        rng: Any,
        reward: float,
        fork: ForkPoint | None = None,
    ) -> Trajectory:
        call = rng.integers(20, 300, 48).astype(np.int32)
        call[8], call[16], call[40] = TOKENS.think_close, TOKENS.call_open, TOKENS.call_close
        first = PolicySegment(call, -rng.uniform(size=48).astype(np.float32), 0)
        crop = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        last = PolicySegment(
            rng.integers(20, 300, 48).astype(np.int32), -rng.uniform(size=48).astype(np.float32), 0
        )
        segments = (first, ObservationSegment(call, (crop,)), last)
        return Trajectory(
            question.id,
            rollout,
            call,
            segments,
            EndReason.ANSWERED,
            "7",
            reward,
            fork,
            RolloutStats(seconds=1.0),
        )


def _seconds(question: str, step: int, fit: tuple[float, float]) -> float:
    return float(np.random.default_rng([int(question), step, 1]).lognormal(*fit))


class _Task:
    def train(self, index: int) -> Question:
        return Question(str(index), "?", (), "7")


def measure() -> list[dict[str, Any]]:
    """Entry `efficiency_64`: how busy an engine is kept where there are 64, over one alone."""
    durations = bench_engine.GROUP_SECONDS
    if not durations:
        raise RuntimeError("bench_engine measured no group to fit latencies to")
    logs = np.log(durations)
    fit = float(logs.mean()), float(logs.std())
    rates, costs = {}, {}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        for count in ENGINES:
            rates[count], costs[count] = _run(count, fit)
    finally:
        ray.shutdown()
    driver, resampler = costs[ENGINES[-1]]
    first = "driver" if driver > resampler else "resampler"
    most = 1 / max(driver, resampler) / (rates[1] * N / float(np.mean(durations)))
    shares = ", ".join(f"{count}: {rates[count] / rates[1] / count:.3f}" for count in ENGINES)
    return [
        {
            "name": "efficiency_64",
            "value": round(rates[ENGINES[-1]] / rates[1] / ENGINES[-1], 3),
            "target": 0.9,
            "better": "higher",
            "unit": "share",
            "detail": f"simulated engines ({shares}); groups of {N} take {math.exp(fit[0]):.1f} s in the median, as measured; CPU time a "
            f"trajectory: driver {driver * 1e3:.2f} ms, resampler {resampler * 1e3:.2f} ms; the {first} would be the first bottleneck, "
            f"at about {most:.0f} engines of this speed",
        }
    ]


def _run(count: int, fit: tuple[float, float]) -> tuple[float, tuple[float, float]]:
    """(groups under way on average, CPU seconds of driver and resampler a trajectory), from the first wave's end to the last one's start.

    Groups under way: the durations of the groups that finished, over the time they finished in. By Little's law the rate a group of
    mean duration would have, without the noise of which durations were drawn.
    """
    config = RolloutConfig(
        workers=count, n=N, concurrency=IN_FLIGHT, cpus_per_worker=0.001, health_s=300
    )
    recipe = parse_recipe(
        {
            "name": "scale",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": 1,
            "questions_per_step": GROUPS_EACH * count,
            "rollout": {"n": N, "engine": {"weight_transfer": "shared_memory"}},
        }
    )
    finished: list[tuple[float, str]] = []

    def log(event: str, **fields: Any) -> None:
        if event == "finished":
            finished.append((time.monotonic(), fields["question"]))

    settings = WorkerSettings("", config, fit, lambda q, a: 0.0, run_seed=0)  # type: ignore[arg-type]
    pool = RolloutPool(settings, actor_class=WaitingWorker)
    try:
        resampler = start_resampler(recipe.resampler, pool.ready(), N)
        before, spent = (
            ray.get(resampler.actor.__ray_call__.remote(lambda self: time.process_time()), timeout=60),
            time.process_time(),
        )
        flow = Flow(recipe, _Task(), pool, resampler, log=log)  # type: ignore[arg-type]
        flow.feed(0)
        flow.take(0)
        trajectories = len(finished) * N
        driver = (time.process_time() - spent) / trajectories
        forked = (
            ray.get(resampler.actor.__ray_call__.remote(lambda self: time.process_time()), timeout=60)
            - before
        ) / trajectories
        ray.kill(resampler.actor)
    finally:
        pool.shutdown()
    wave = count * IN_FLIGHT // N
    steady = finished[wave:-wave]
    return sum(_seconds(question, 0, fit) for _, question in steady[1:]) / (
        steady[-1][0] - steady[0][0]
    ), (driver, forked)
