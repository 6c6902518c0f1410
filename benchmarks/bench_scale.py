"""Many engines on this machine by simulation: all is real but the engines, which only wait.

Ray actors, pool, resampler and flow are the real ones. How long a group takes is drawn from a
log-normal fitted to the durations of the three-turn groups that `bench_engine` measured in the same
run. So what is measured is what the driver and the resampler do: they would have to keep up with so
many engines.
"""

from __future__ import annotations

import asyncio
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
from resampler.client import ResamplerClient
from resampler.resampler import start_resampler
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    RolloutStats,
    Segment,
    SpecialTokens,
    Trajectory,
)

ENGINES = (1, 4, 16, 64)
N = 8
GROUPS_EACH = 32
"""Questions an engine: four times what it has in flight."""
TOKENS = SpecialTokens(*range(9))
TURN_TOKENS = 48
RIGHT = 0.3
"""Share of right rollouts."""
ANSWER_S = 60.0
"""Deadline for the resampler's CPU time."""


@dataclass(frozen=True)
class Fit:
    """A log-normal distribution of seconds."""

    mu: float
    sigma: float

    @classmethod
    def of(cls, durations: Sequence[float]) -> Fit:
        """Return the distribution that fits some durations."""
        logs = np.log(durations)
        return cls(float(logs.mean()), float(logs.std()))

    def seconds(self, question: str, step: int) -> float:
        """Return how long the group of a question takes."""
        return float(np.random.default_rng([int(question), step, 1]).lognormal(self.mu, self.sigma))


@dataclass(frozen=True)
class Rate:
    """What a number of engines did, from the first wave's end to the last one's start."""

    groups: float  # under way on average
    driver_s: float  # CPU seconds a trajectory
    resampler_s: float  # CPU seconds a trajectory


class WaitingWorker:
    """A rollout worker that waits as long as a group takes.

    It answers with trajectories of the usual size.
    """

    def __init__(self, index: int, settings: WorkerSettings) -> None:
        # The place of the tools holds the distribution: the pool hands it on unread.
        fit: Any = settings.tools
        self.index, self.fit = index, fit
        # Groups that are generated at once; others wait here, as in a real worker.
        self.room = asyncio.Semaphore(IN_FLIGHT // N)

    async def ready(self) -> SpecialTokens:
        """Return at once."""
        return TOKENS

    async def ping(self) -> None:
        """Give a sign of life."""

    async def rollout(
        self,
        question: Question,
        n: int,
        step: int,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Group:
        """Wait as long as the group takes."""
        rng = np.random.default_rng([int(question.id), step])
        async with self.room:
            await asyncio.sleep(self.fit.seconds(question.id, step))
        rollouts = []
        for index in range(n):
            reward = float(rng.uniform() < RIGHT)
            rollouts.append(_trajectory(question, index, reward, _segments(rng)))
        return Group(question, tuple(rollouts), self.index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        """Wait half as long as a group takes; the first continuation is right."""
        rng = np.random.default_rng([int(question.id), step, source.rollout])
        await asyncio.sleep(rng.lognormal(self.fit.mu, self.fit.sigma) / 2)
        continuations = []
        for k in range(request.k):
            point = ForkPoint(source.rollout, k, request.prefix_tokens)
            made = _trajectory(question, source.rollout, float(k == 0), _segments(rng), point)
            continuations.append(made)
        return Resample(source.rollout, request.prefix_tokens, tuple(continuations))

    async def shutdown(self) -> None:
        """Have nothing to end."""


def _segments(rng: np.random.Generator) -> tuple[Segment, ...]:
    """Return a turn that calls, its observation, and a turn that answers."""
    call = _ids(rng)
    assert TOKENS.think_close is not None
    call[8], call[16], call[40] = TOKENS.think_close, TOKENS.call_open, TOKENS.call_close
    first = PolicySegment(call, _logprobs(rng), 0)
    crop = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    last = PolicySegment(_ids(rng), _logprobs(rng), 0)
    return first, ObservationSegment(call, (crop,)), last


def _ids(rng: np.random.Generator) -> Ids:
    return rng.integers(20, 300, TURN_TOKENS).astype(np.int32)


def _logprobs(rng: np.random.Generator) -> np.ndarray:
    return -rng.uniform(size=TURN_TOKENS).astype(np.float32)


def _trajectory(
    question: Question,
    rollout: int,
    reward: float,
    segments: tuple[Segment, ...],
    fork: ForkPoint | None = None,
) -> Trajectory:
    return Trajectory(
        question_id=question.id,
        rollout=rollout,
        prompt_ids=segments[0].token_ids,
        segments=segments,
        end=EndReason.ANSWERED,
        answer="7",
        reward=reward,
        fork=fork,
        stats=RolloutStats(seconds=1.0),
    )


class _Task:
    def train(self, index: int) -> Question:
        return Question(str(index), "?", (), "7")


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
        resampler_before, driver_before = _cpu_seconds(resampler), time.process_time()
        flow = Flow(recipe, _Task(), pool, resampler, log=log)  # type: ignore[arg-type]
        flow.feed(0)
        flow.take(0)
        driver_s = time.process_time() - driver_before
        resampler_s = _cpu_seconds(resampler) - resampler_before
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
    return WorkerSettings("", config, fit, _never_asked, run_seed=0)  # type: ignore[arg-type]


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


def _never_asked(question: Question, answer: str | None) -> float:
    return 0.0


def _cpu_seconds(resampler: ResamplerClient) -> float:
    """Return the CPU time of the resampler's process."""
    reference = resampler.actor.__ray_call__.remote(lambda _: time.process_time())
    seconds: float = ray.get(reference, timeout=ANSWER_S)
    return seconds
