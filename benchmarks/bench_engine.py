"""The worker path on a real engine.

It is compared with bare vLLM and with a loop in lockstep. Also: how much of a continuation's prompt
comes from the cache, and what AXPO's continuations cost.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from axpo.config import Recipe, parse_recipe
from axpo.tasks.embedded.small_digit import SmallDigit, SmallDigitConfig
from axpo.training.flow import Flow, Taken
from benchmarks.engines import BLOCK, CONFIG, IN_FLIGHT, MODEL, ask, each, engines
from benchmarks.result import Entry, at_least, at_most
from benchmarks.scripted import Script
from benchmarks.timing import timed
from resampler.places import FirstCall
from resampler.resampler import start_resampler
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import Group, Question, RolloutStats

ROUNDS = 3
WALL_ROUNDS = 9
"""Of a generation phase: one long continuation behind a late fork moves the ratio of a round by a
third."""
STEP = 160
"""Rollouts in flight of an engine with room for a step: 16 questions x 8, and its continuations."""
TURNS = 3
K = 4
GROUP_SECONDS: list[float] = []
"""Durations of three-turn groups, for `bench_scale`."""


@dataclass(frozen=True)
class CacheShare:
    """What became of some continuations."""

    cached: float  # mean share of the whole blocks of a prompt that was cached
    home: float  # share on the engine with their prefix


@dataclass
class Arm:
    """One way to train, and what its generation phases were."""

    flow: Flow
    seconds: list[float] = field(default_factory=list)
    prefixes: list[set[tuple[str, int]]] = field(default_factory=list)
    recovered: list[bool] = field(default_factory=list)

    def note(self, seconds: float, taken: Taken) -> None:
        """Keep what a phase took, and which prefixes it resampled."""
        self.seconds.append(seconds)
        prefixes = set()
        for group in taken.groups:
            for resample in group.resamples:
                prefixes.add((group.question.id, resample.source))
                best = max(continuation.reward or 0.0 for continuation in resample.continuations)
                self.recovered.append(best > 0)
        self.prefixes.append(prefixes)


def measure() -> Iterator[Entry]:
    """Yield the entries, each as soon as it is measured."""
    with engines() as pool:
        yield _worker_vs_bare(pool)
        yield _async_vs_lockstep(pool)
        shares = {"one engine": _cache_share(pool)}
    with engines(in_flight=STEP) as pool:
        yield from _axpo_vs_grpo(pool)
    with engines(workers=2) as pool:
        shares["two engines"] = _cache_share(pool)
    # The number is of the worse case; the detail has both.
    worst = min(share.cached for share in shares.values())
    parts = [
        f"{name}: {share.cached:.4f}, {share.home:.0%} of the forks on the engine with their prefix"
        for name, share in shares.items()
    ]
    detail = f"of whole blocks of {BLOCK} before the fork's first token; {'; '.join(parts)}"
    yield at_least("fork_cache_share", round(worst, 4), 0.95, "share", detail)


def _worker_vs_bare(pool: RolloutPool) -> Entry:
    """Compare both sides from empty caches. They take turns, and so do the questions' numbers."""
    script = Script(mean=96, sigma=0.6)
    questions = ask(16)

    def worker(step: int) -> int:
        tokens = 0
        for group in pool.rollout(questions, step):
            tokens += sum(rollout.policy_tokens for rollout in group.rollouts)
        return tokens

    def bare(step: int) -> int:
        tokens: int = each(pool, "bare", questions, CONFIG.n, step)[0]
        return tokens

    def from_empty_caches(side: Callable[[int], int], step: int) -> tuple[int, float]:
        each(pool, "set", script)
        return timed(partial(side, step))

    ratios, speeds = [], []
    for step in range(ROUNDS + 1):
        # The other side goes first in every other round: a machine that slows down costs both.
        if step % 2:
            tokens, ours = from_empty_caches(worker, step)
            _, theirs = from_empty_caches(bare, step)
        else:
            _, theirs = from_empty_caches(bare, step)
            tokens, ours = from_empty_caches(worker, step)
        # The first round is a warm-up.
        if step:
            ratios.append(theirs / ours)
            speeds.append(tokens / ours)
    detail = (
        f"{len(questions) * CONFIG.n} rollouts of one turn with an image, {IN_FLIGHT} in flight, "
        f"lengths log-normal around 96 tokens; "
        f"worker path {statistics.median(speeds):.0f} tokens/s; median of {ROUNDS}"
    )
    ratio = round(statistics.median(ratios), 4)
    return at_least("worker_vs_bare_engine", ratio, 0.95, "x", detail)


def _async_vs_lockstep(pool: RolloutPool) -> Entry:
    """Compare the worker path with a loop in which all wait for the slowest of each turn.

    The tool's mean latency is the mean time of a turn with the engine full, measured first without
    a tool's wait.
    """
    script, questions = Script(mean=48, sigma=0.6, tool_turns=TURNS - 1), ask(16, 100)
    each(pool, "set", script)
    turn_s = _mean_turn_seconds(_rollouts(pool, questions, 0))
    ratios = []
    for step in range(1, ROUNDS + 1):
        each(pool, "set", script, turn_s)
        groups, ours = timed(partial(_rollouts, pool, questions, step))
        _check_turns(groups)
        each(pool, "set", script, turn_s)
        arguments = (questions, CONFIG.n, step, TURNS)
        _, theirs = timed(partial(each, pool, "lockstep", *arguments))
        ratios.append(theirs / ours)
        for group in groups:
            GROUP_SECONDS.append(max(rollout.stats.seconds for rollout in group.rollouts))
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    detail = (
        f"{len(questions) * CONFIG.n} rollouts of 3 turns of about 48 tokens, 2 tool calls each, "
        f"{IN_FLIGHT} in flight on both sides; tool latency log-normal (sigma 1), "
        f"mean {turn_s:.2f} s = a turn's; ratios {listed}"
    )
    ratio = round(statistics.median(ratios), 4)
    return at_least("async_vs_lockstep", ratio, 2.06, "x", detail)


def _rollouts(pool: RolloutPool, questions: Sequence[Question], step: int) -> list[Group]:
    return list(pool.rollout(questions, step))


def _mean_turn_seconds(groups: Sequence[Group]) -> float:
    stats: list[RolloutStats] = []
    for group in groups:
        stats += [rollout.stats for rollout in group.rollouts]
    return sum(of_rollout.engine_seconds for of_rollout in stats) / (TURNS * len(stats))


def _check_turns(groups: Sequence[Group]) -> None:
    for group in groups:
        if any(rollout.stats.tool_calls != TURNS - 1 for rollout in group.rollouts):
            raise AssertionError(f"not every rollout had {TURNS} turns")


def _cache_share(pool: RolloutPool) -> CacheShare:
    """Continue two rollouts of each question at their first call."""
    each(pool, "set", Script(mean=64, sigma=0.6, tool_turns=1))
    pool.take_stats()
    tokens = pool.ready()
    questions = ask(8 * len(pool.workers), 200)
    futures = []
    for group in _rollouts(pool, questions, 0):
        for rollout in group.rollouts[:2]:
            (point,) = FirstCall().points(rollout, tokens)
            request = ForkRequest(rollout.rollout, point.prefix_tokens, k=K)
            futures.append(pool.run(pool.fork(group, request, 0)))
    served = []
    for future in futures:
        # The K share one prompt: one of them says what was cached.
        for continuation in future.result(600).continuations[:1]:
            stats = continuation.stats
            # Blocks are cached whole, and the prompt's last token is never served from the cache:
            # the first new token is sampled after it.
            whole_blocks = (stats.prompt_tokens - 1) // BLOCK * BLOCK
            served.append(stats.cached_tokens / max(whole_blocks, 1))
    return CacheShare(statistics.mean(served), pool.take_stats()["forks_home_share"])


def _axpo_vs_grpo(pool: RolloutPool) -> list[Entry]:
    """Compare generation phases, from the first question sent to the last group there.

    Questions and seeds are the same.
    """
    script = Script(mean=64, sigma=1.0, most=768, tool_turns=1, tool_rate=0.5, right=0.25)
    recipes = {
        "grpo": _recipe(algorithm="grpo"),
        "streaming": _recipe(resampler={"schedule": "streaming"}),
        "batch": _recipe(resampler={"schedule": "batch"}),
    }
    arms = {name: Arm(_flow(pool, recipe)) for name, recipe in recipes.items()}
    names = list(arms)
    for step in range(WALL_ROUNDS + 1):
        # They take turns in going first.
        first = step % len(names)
        for name in names[first:] + names[:first]:
            arm = arms[name]
            each(pool, "set", script)
            begun = time.monotonic()
            arm.flow.feed(step)
            taken = arm.flow.take(step)
            # The first step is a warm-up.
            if step:
                arm.note(time.monotonic() - begun, taken)
    return [_wall(name, arms) for name in ("streaming", "batch")]


def _wall(name: str, arms: dict[str, Arm]) -> Entry:
    arm, grpo = arms[name], arms["grpo"]
    ratios = [ours / theirs for ours, theirs in zip(arm.seconds, grpo.seconds, strict=True)]
    recovered = sum(arm.recovered) / max(len(arm.recovered), 1)
    detail = (
        f"16 questions x 8, r = 0.25, K = {K}, {STEP} in flight at most; "
        f"thoughts log-normal (sigma 1) around 64 tokens, calls of 32; "
        f"GRPO {statistics.median(grpo.seconds):.1f} s; "
        f"{len(arm.recovered)} prefixes, {recovered:.0%} recovered"
    )
    if name == "streaming":
        overlap = _overlap(arm, arms["batch"])
        detail += f"; {overlap:.0%} of the prefixes that the batch rule chose"
    detail += f"; median of {', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}"
    ratio = round(statistics.median(ratios), 4)
    return at_most(f"axpo_vs_grpo_wall_{name}", ratio, 1.08, "x", detail)


def _overlap(arm: Arm, batch: Arm) -> float:
    """Return the share of the batch schedule's prefixes that another arm resampled too."""
    steps = zip(arm.prefixes, batch.prefixes, strict=True)
    both = sum(len(own & of_batch) for own, of_batch in steps)
    return both / max(sum(len(prefixes) for prefixes in batch.prefixes), 1)


def _flow(pool: RolloutPool, recipe: Recipe) -> Flow:
    resampler = start_resampler(recipe.resampler, pool.ready(), recipe.rollout.n)
    return Flow(recipe, _Later(SmallDigitConfig()), pool, resampler)


class _Later(SmallDigit):
    """Questions that the other measurements do not ask."""

    def train(self, index: int) -> Question:
        """Return a question of a higher number."""
        return super().train(1000 + index)


def _recipe(**fields: Any) -> Recipe:
    base = {
        "name": "bench",
        "model": MODEL,
        "task": {"kind": "small_digit"},
        "steps": WALL_ROUNDS + 1,
        "questions_per_step": 16,
        "rollout": {"n": 8, "engine": {"weight_transfer": "shared_memory"}},
    }
    return parse_recipe(base | fields)
