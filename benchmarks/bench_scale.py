"""64 engines on this machine by simulation: each is a Ray actor that only waits.

How long a group takes is drawn from a log-normal fitted to the durations of the three-turn groups
that `bench_engine` measured in the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from axpo.config import Recipe, parse_recipe
from axpo.training.flow import Flow
from benchmarks import bench_engine
from benchmarks.cluster import local_ray
from benchmarks.engines import IN_FLIGHT, MODEL
from benchmarks.result import Entry, at_least
from benchmarks.waiting import CountedTask, Fit, N, WaitingWorker, cpu_seconds, never_asked
from resampler.resampler import start_resampler
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings

ENGINES = (1, 4, 16, 64)
GROUPS_EACH = 32
"""Questions an engine: four times what it has in flight."""


@dataclass(frozen=True)
class Rate:
    """What a number of engines did, from the first wave's end to the last one's start."""

    groups: float  # under way on average
    driver_s: float  # CPU seconds a trajectory
    resampler_s: float  # CPU seconds a trajectory


def measure() -> list[Entry]:
    """Return the entry `efficiency_64`: how busy each of 64 engines is kept, over one alone."""
    durations = bench_engine.GROUP_SECONDS
    # The command runs `bench_engine` first, in this process.
    if not durations:
        raise RuntimeError("bench_engine measured no group to fit latencies to")
    fit = Fit.of(durations)
    with local_ray():
        rates = {count: _run(count, fit) for count in ENGINES}
    # 1 means that each engine is kept as busy as one alone.
    efficiency = {count: rate.groups / rates[1].groups / count for count, rate in rates.items()}
    largest = ENGINES[-1]
    driver, resampler = rates[largest].driver_s, rates[largest].resampler_s
    # What takes the longest for a trajectory is the first that does not keep up.
    first = "driver" if driver > resampler else "resampler"
    trajectories_per_s = rates[1].groups * N / float(np.mean(durations))
    most = 1 / max(driver, resampler) / trajectories_per_s
    shares = ", ".join(f"{count}: {share:.3f}" for count, share in efficiency.items())
    detail = (
        f"simulated engines ({shares}); groups of {N} take {math.exp(fit.mu):.1f} s in the median, "
        f"as measured; CPU time a trajectory: driver {driver * 1e3:.2f} ms, "
        f"resampler {resampler * 1e3:.2f} ms; the {first} would be the first bottleneck, "
        f"at about {most:.0f} engines of this speed"
    )
    return [at_least("efficiency_64", round(efficiency[largest], 3), 0.9, "share", detail)]


def _run(count: int, fit: Fit) -> Rate:
    """Train one step of so many engines."""
    finished: list[tuple[float, str]] = []

    # The flow's log has the moment at which each group came in.
    def log(event: str, **fields: Any) -> None:
        if event == "finished":
            finished.append((time.monotonic(), fields["question"]))

    recipe = _recipe(count)
    pool = RolloutPool(_settings(count, fit), actor_class=WaitingWorker)
    try:
        resampler = start_resampler(recipe.resampler, pool.ready(), N)
        resampler_before, driver_before = cpu_seconds(resampler.actor), time.process_time()
        flow = Flow(recipe, CountedTask(), pool, resampler, log=log)  # type: ignore[arg-type]
        flow.feed(0)
        flow.take(0)
        driver_s = time.process_time() - driver_before
        resampler_s = cpu_seconds(resampler.actor) - resampler_before
        ray.kill(resampler.actor)
    finally:
        pool.shutdown()
    trajectories = len(finished) * N
    return Rate(
        _groups_under_way(finished, count, fit), driver_s / trajectories, resampler_s / trajectories
    )


def _groups_under_way(finished: Sequence[tuple[float, str]], count: int, fit: Fit) -> float:
    """Return how many groups were under way on average.

    These are the durations of the groups that finished, over the time they finished in. By Little's
    law it is the rate that a group of mean duration would have, without the noise of which
    durations were drawn.
    """
    wave = count * IN_FLIGHT // N
    # Without the first and the last wave: there some engines have nothing to do.
    steady = finished[wave:-wave]
    durations = [fit.seconds(question, 0) for _, question in steady[1:]]
    return sum(durations) / (steady[-1][0] - steady[0][0])


def _settings(count: int, fit: Fit) -> WorkerSettings:
    # A worker that only waits needs next to no CPU; Ray must place 64 of them on this machine.
    config = RolloutConfig(
        workers=count, n=N, concurrency=IN_FLIGHT, cpus_per_worker=0.001, health_s=300
    )
    return WorkerSettings("", config, fit, never_asked, run_seed=0)  # type: ignore[arg-type]


def _recipe(count: int) -> Recipe:
    return parse_recipe(
        {
            "name": "scale",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": 1,
            "questions_per_step": GROUPS_EACH * count,
            "rollout": {"n": N, "engine": {"weight_transfer": "shared_memory"}},
        }
    )
