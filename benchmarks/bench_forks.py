"""What AXPO's forks cost a whole step, beside GRPO: on an engine with idle slots, and on a CPU.

Both go through the real flow, resampler and pool. A step is what `train_step` makes: rollouts,
update, weights. The policy stays the start model's, so all arms do the same work.

    idle slots   a simulated engine (`benchmarks.simulated`) and a learner that waits. Forks may
                 run while the learner waits, and in slots that the rollouts leave idle
    CPU          the demo's engine and ranks. Engine and ranks share two cores, and every further
                 token costs compute: no schedule can be cheaper than the tokens are

Also: what share of a fork's prompt comes from the cache if the run is asynchronous.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from axpo.config import Recipe, load_recipe, parse_recipe
from axpo.evaluation.diagnostics import resample_diagnostics
from axpo.session import ray_session
from axpo.training.actors import Actors, training_actors
from axpo.training.flow import Flow, Taken
from axpo.training.trainer import train_step
from benchmarks.cluster import local_ray
from benchmarks.engines import MODEL
from benchmarks.result import Entry, at_least, at_most
from benchmarks.simulated import CALL, CALL_RATE, IDLE, MEAN, ROUND_S, SimulatedWorker
from resampler.resampler import start_resampler
from rollout_workers.config import RolloutConfig
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import Question

DEMO = "deploy/recipes/demo.yaml"
GRPO = "algorithm=grpo"
ARMS = {
    "grpo": [GRPO],
    "carry": ["resampler.schedule=carry"],
    "streaming": ["resampler.schedule=streaming"],
    "batch": ["resampler.schedule=batch"],
}
ASYNC = {
    "batch": ["max_staleness=1", "sync_at=batch"],
    "update": ["max_staleness=1", "sync_at=update"],
}
"""When engines get an update, by `sync_at`."""
ASYNC_STEPS = 10
BLOCKS = 2
STEPS = 6
"""Of a block. The first has no forks of a step before it, and the last waits for its own: neither
is measured."""
LEARN_SHARE = 0.5
"""Of the simulated learner: its seconds over those of GRPO's rollouts."""
AIM_IDLE, AIM_CPU = 1.03, 1.10


class StepCost(NamedTuple):
    """What a step took."""

    seconds: float
    tokens: int


@dataclass
class Costs:
    """The steps of an arm, block by block."""

    blocks: list[list[StepCost]] = field(default_factory=list)

    def mean(self, block: int) -> StepCost:
        """Return the mean step of a block."""
        steps = self.blocks[block]
        seconds = statistics.mean(step.seconds for step in steps)
        return StepCost(seconds, sum(step.tokens for step in steps) // len(steps))


Step = Callable[[Recipe, Flow, int], Taken]
"""Makes one whole step of a flow; returns its batch."""


def measure() -> Iterator[Entry]:
    """Yield the entries of both kinds of engine, and of an asynchronous run."""
    yield from _entries("idle_slots", _idle_slots(), AIM_IDLE)
    recipe = _demo([])
    with ray_session(recipe), training_actors(recipe, recipe.task.load()) as actors:
        actors.policy.publish(0)
        yield from _entries("cpu", _cpu(actors), AIM_CPU)
        yield _cached_in_async_runs(actors)


def _idle_slots() -> tuple[dict[str, Costs], str]:
    with local_ray():
        config = RolloutConfig(n=8, concurrency=IDLE, cpus_per_worker=0.01, health_s=300)
        settings = WorkerSettings("", config, None, _never_asked, run_seed=0)  # type: ignore[arg-type]
        pool = RolloutPool(settings, actor_class=SimulatedWorker)
        try:
            learn_s = LEARN_SHARE * _rollout_seconds(pool)

            def step(recipe: Recipe, flow: Flow, number: int) -> Taken:
                flow.feed(number)
                batch = flow.take(number)
                time.sleep(learn_s)
                return batch

            costs = _costs(pool, _simulated_recipe, step)
        finally:
            pool.shutdown()
    about = (
        f"a round of the simulated engine takes {ROUND_S * 1e3:.0f} ms, with {IDLE} sequences "
        f"twice that; thoughts of {MEAN:.0f} tokens (log-normal, sigma 1), {CALL_RATE:.0%} with a "
        f"call of {CALL}; an update takes {learn_s:.2f} s, whatever it trains"
    )
    return costs, about


def _rollout_seconds(pool: RolloutPool) -> float:
    """Return what the rollouts of one of GRPO's steps take."""
    flow = _flow(pool, _simulated_recipe([GRPO]))
    begun = time.monotonic()
    flow.feed(0)
    flow.take(0)
    flow.close()
    return time.monotonic() - begun


def _cpu(actors: Actors) -> tuple[dict[str, Costs], str]:
    about = "the demo's engine, ranks and questions, weights sent after every step"
    return _costs(actors.pool, _demo, _steps_of(actors)), about


def _steps_of(actors: Actors) -> Step:
    phases = _NoPhases()

    def step(recipe: Recipe, flow: Flow, number: int) -> Taken:
        return train_step(recipe, actors, flow, number, phases).batch

    return step


def _cached_in_async_runs(actors: Actors) -> Entry:
    """Measure the cached share of each step's forks; the worst step counts."""
    worst, shares = {}, {}
    for sync_at, overrides in ASYNC.items():
        recipe = _demo([f"steps={ASYNC_STEPS}", *overrides])
        flow, step = _flow(actors.pool, recipe), _steps_of(actors)
        of_steps = []
        for number in range(ASYNC_STEPS):
            batch = step(recipe, flow, number)
            numbers = resample_diagnostics(batch.resampled, actors.tokens)
            if "fork_cached_share" in numbers:
                of_steps.append(numbers["fork_cached_share"])
        worst[sync_at] = min(of_steps)
        shares[sync_at] = ", ".join(f"{share:.2f}" for share in of_steps)
    detail = (
        f"of the prompt tokens of continuations, max_staleness 1, sync_at batch: the worst of "
        f"{ASYNC_STEPS} steps ({shares['batch']}); sync_at update: {shares['update']}"
    )
    return at_least("fork_cache_share_async", round(worst["batch"], 4), 0.9, "share", detail)


class _NoPhases:
    def phase(self, name: str) -> Any:
        return nullcontext()


def _costs(
    pool: RolloutPool, recipe_of: Callable[[list[str]], Recipe], step: Step
) -> dict[str, Costs]:
    """Let the arms take turns; they take turns in going first, too."""
    costs = {name: Costs() for name in ARMS}
    names = list(ARMS)
    # The first block is a warm-up.
    for block in range(BLOCKS + 1):
        first = block % len(names)
        for name in names[first:] + names[:first]:
            recipe = recipe_of(ARMS[name])
            steps = _block(recipe, _flow(pool, recipe), step)
            if block:
                costs[name].blocks.append(steps)
    return costs


def _block(recipe: Recipe, flow: Flow, step: Step) -> list[StepCost]:
    steps = []
    for number in range(STEPS):
        begun = time.monotonic()
        batch = step(recipe, flow, number)
        steps.append(StepCost(time.monotonic() - begun, _tokens(batch)))
    return steps[1:-1]


def _tokens(batch: Taken) -> int:
    """Return the tokens of a batch's rollouts and of the continuations that came with it."""
    tokens = 0
    for group in batch.finished:
        tokens += sum(rollout.policy_tokens for rollout in group.rollouts)
    for group in batch.resampled:
        for resample in group.resamples:
            tokens += sum(made.policy_tokens for made in resample.continuations)
    return tokens


def _entries(kind: str, measured: tuple[dict[str, Costs], str], aim: float) -> Iterator[Entry]:
    costs, about = measured
    grpo = costs["grpo"]
    for name in ("carry", "streaming"):
        walls, tokens = [], []
        for block in range(BLOCKS):
            ours, theirs = costs[name].mean(block), grpo.mean(block)
            walls.append(ours.seconds / theirs.seconds)
            tokens.append(ours.tokens / theirs.tokens)
        batch = costs["batch"].mean(0).seconds / grpo.mean(0).seconds
        detail = (
            f"whole steps, 16 questions x 8; tokens {statistics.median(tokens):.2f} x GRPO's; "
            f"GRPO {grpo.mean(0).seconds:.1f} s a step; the batch schedule {batch:.2f}; {about}; "
            f"blocks of {STEPS - 2} steps: {', '.join(f'{wall:.2f}' for wall in walls)}"
        )
        value = round(statistics.median(walls), 4)
        yield at_most(f"axpo_vs_grpo_wall_{name}_{kind}", value, aim, "x", detail)


def _flow(pool: RolloutPool, recipe: Recipe) -> Flow:
    resampler = start_resampler(recipe.resampler, pool.ready(), recipe.rollout.n)
    return Flow(recipe, recipe.task.load(), pool, resampler)


def _simulated_recipe(overrides: list[str]) -> Recipe:
    return parse_recipe(
        {
            "name": "forks",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": STEPS,
            "questions_per_step": 16,
            "rollout": {"n": 8, "engine": {"weight_transfer": "shared_memory"}},
        },
        overrides,
    )


def _demo(overrides: list[str]) -> Recipe:
    # So small a rate moves no token: all arms sample the same policy.
    return load_recipe(DEMO, [f"steps={STEPS}", "learner.lr=1e-9", *overrides])


def _never_asked(question: Question, answer: str | None) -> float:
    return 0.0
