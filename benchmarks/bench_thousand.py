"""A thousand engines by simulation: how busy they are kept, and what a trajectory costs the driver.

Flow, pool, resampler, Ray's calls and the log of a run are real. The engines only wait, and a few
actors stand for all of them (`hosted.py`). The run is asynchronous, as one of that size would be:
groups are released as they are trained, so memory stays that of a few batches.
"""

from __future__ import annotations

import math
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.config import Recipe, parse_recipe
from axpo.record.ledger import Ledger
from axpo.training.flow import Flow
from axpo.training.telling import both
from benchmarks import bench_engine
from benchmarks.engines import IN_FLIGHT, MODEL
from benchmarks.hosted import HOSTS, hosted
from benchmarks.result import Entry, at_least, at_most
from benchmarks.waiting import CountedTask, Fit, N, cpu_seconds, never_asked
from resampler.client import ResamplerClient
from resampler.resampler import start_resampler
from rollout_workers.config import RolloutConfig
from rollout_workers.garbage import few_collections
from rollout_workers.settings import WorkerSettings

ENGINES = 1_000
GROUPS_AT_ONCE = ENGINES * IN_FLIGHT // N
QUESTIONS = 2_000
STEPS = 10
STALENESS = STEPS - 1
"""So wide that no step before the last waits for a straggler: the engines would then be idle
because of the bound, not because of the driver."""
MEDIAN_S = 60.0
"""Seconds of a group: a rollout of an 8B model takes about a minute on a full GPU."""
SPREAD = 0.3
"""Sigma of their log-normal if `bench_engine` did not measure it in the same run. It follows from
that benchmark's lengths and tool latencies: three turns, two calls, the longest of 8 rollouts."""


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the processes that take part."""

    driver: float
    resampler: float
    engines: float

    def a_trajectory(self, before: Cost, trajectories: int) -> Cost:
        """Return what each of the trajectories cost since an earlier look."""
        return Cost(
            (self.driver - before.driver) / trajectories,
            (self.resampler - before.resampler) / trajectories,
            (self.engines - before.engines) / trajectories,
        )


@dataclass(frozen=True)
class Finished:
    """A group that came in."""

    at: float  # seconds, monotonic
    question: str
    batch: int


@dataclass(frozen=True)
class Run:
    """What a run of all steps cost."""

    cost: Cost  # a trajectory, forks included
    memory_mib: list[float]  # of the driver, after each step


def measure() -> list[Entry]:
    """Return `efficiency_1000` and `driver_ms_per_trajectory`."""
    finished: list[Finished] = []

    def log(event: str, **fields: Any) -> None:
        if event == "finished":
            finished.append(Finished(time.monotonic(), fields["question"], fields["batch"]))

    with tempfile.TemporaryDirectory() as folder, few_collections():
        ledger = Ledger(Path(folder) / "rollouts.jsonl")
        fit = _latency()
        run = _run(fit, both(ledger.log, log))
    efficiency = _groups_under_way(finished, fit) / GROUPS_AT_ONCE
    detail = _detail(run, fit, len(finished) * N)
    return [
        at_least("efficiency_1000", round(efficiency, 3), 0.9, "share", detail),
        at_most("driver_ms_per_trajectory", round(run.cost.driver * 1e3, 3), 0.5, "ms", detail),
    ]


def _latency() -> Fit:
    """Return how long groups take."""
    measured = bench_engine.GROUP_SECONDS
    return Fit(math.log(MEDIAN_S), Fit.of(measured).sigma if measured else SPREAD)


def _run(fit: Fit, log: Any) -> Run:
    """Take the batches of all steps."""
    recipe = _recipe()
    config = RolloutConfig(workers=ENGINES, n=N, concurrency=IN_FLIGHT)
    settings = WorkerSettings("", config, fit, never_asked, run_seed=0)  # type: ignore[arg-type]
    with hosted(settings, log) as pool:
        resampler = start_resampler(recipe.resampler, pool.ready(), N)
        flow = Flow(recipe, CountedTask(), pool, resampler, log=log)  # type: ignore[arg-type]
        before, memory = _cost(resampler, pool.hosts), []
        for step in range(STEPS):
            flow.feed(step)
            groups = len(flow.take(step).groups)
            if groups != QUESTIONS:
                raise AssertionError(f"{QUESTIONS - groups} groups were lost")
            memory.append(_resident_mib())
        cost = _cost(resampler, pool.hosts).a_trajectory(before, STEPS * QUESTIONS * N)
        return Run(cost, memory)


def _cost(resampler: ResamplerClient, hosts: Sequence[Any]) -> Cost:
    return Cost(
        driver=time.process_time(),
        resampler=cpu_seconds(resampler.actor),
        engines=sum(cpu_seconds(host) for host in hosts),
    )


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _groups_under_way(finished: Sequence[Finished], fit: Fit) -> float:
    """Return how many groups were under way on average.

    These are the durations of the groups that finished, over the time they finished in. By Little's
    law it is the rate that a group of mean duration would have, without the noise of which
    durations were drawn.
    """
    # Without the first and the last wave: there some engines have nothing to do.
    steady = finished[GROUPS_AT_ONCE:-GROUPS_AT_ONCE]
    took = [fit.seconds(group.question, group.batch) for group in steady[1:]]
    return sum(took) / (steady[-1].at - steady[0].at)


def _recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "thousand",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": STEPS,
            "max_staleness": STALENESS,
            "questions_per_step": QUESTIONS,
            "rollout": {"n": N, "engine": {"weight_transfer": "shared_memory"}},
        }
    )


def _detail(run: Run, fit: Fit, trajectories: int) -> str:
    cost, memory = run.cost, run.memory_mib
    costs = {"driver": cost.driver, "resampler": cost.resampler}
    first = max(costs, key=lambda name: costs[name])
    return (
        f"{ENGINES:,} simulated engines, {IN_FLIGHT} rollouts in flight on each, groups of {N} "
        f"take {MEDIAN_S:.0f} s in the median, sigma {fit.sigma:.2f}; {HOSTS} Ray actors stand for "
        "the engines: all calls, answers and signs of life are Ray's, the other connections are "
        f"missing; {trajectories:,} trajectories and their forks, max_staleness {STALENESS}; "
        f"CPU time a trajectory: driver {cost.driver * 1e3:.2f} ms, "
        f"resampler {cost.resampler * 1e3:.2f} ms, engines {cost.engines * 1e3:.2f} ms; "
        f"the {first} would be the first bottleneck, at {1 / costs[first]:,.0f} trajectories/s; "
        f"the driver's memory after half of the steps {memory[STEPS // 2 - 1]:,.0f} MiB, after "
        f"all {memory[-1]:,.0f} MiB"
    )
