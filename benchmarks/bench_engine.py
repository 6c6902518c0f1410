"""The worker path on a real engine: against bare vLLM, against a lockstep loop, forks from the cache, and what AXPO's forks cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from axpo.config import Recipe, parse_recipe
from axpo.tasks.embedded.small_digit import SmallDigit, SmallDigitConfig
from axpo.training.flow import Flow
from benchmarks.engines import BLOCK, CONFIG, IN_FLIGHT, MODEL, Script, ask, each, engines
from resampler.places import fork_prefix_tokens
from resampler.resampler import start_resampler
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import Group, Question, Trajectory

ROUNDS = 3
WALL_ROUNDS = 9
"""Of a generation phase: one long continuation behind a late fork moves the ratio of a round by a third."""
STEP = 160
"""Rollouts in flight of an engine with room for a step: 16 questions x 8, and its forks."""
GROUP_SECONDS: list[float] = []
"""Durations of three-turn groups, for `bench_scale`."""


def measure() -> Iterator[dict[str, Any]]:
    with engines() as pool:
        yield _worker_vs_bare(pool)
        yield _async_vs_lockstep(pool)
        shares = {"one engine": _fork_share(pool)}
    with engines(in_flight=STEP) as pool:
        yield from _axpo_vs_grpo(pool)
    with engines(workers=2) as pool:
        shares["two engines"] = _fork_share(pool)
    worst = min(share for share, _ in shares.values())
    detail = "; ".join(
        f"{name}: {share:.4f}, {home:.0%} of the forks on the engine with their prefix"
        for name, (share, home) in shares.items()
    )
    yield _entry(
        "fork_cache_share",
        worst,
        0.95,
        "higher",
        "share",
        f"of whole blocks of {BLOCK} before the fork's first token; {detail}",
    )


def _worker_vs_bare(pool: RolloutPool) -> dict[str, Any]:
    """Both sides start from empty caches; they take turns, and so do the questions' numbers."""
    script, ratios, speeds = Script(mean=96, sigma=0.6), [], []
    questions = ask(16)
    tokens = 0
    for step in range(ROUNDS + 1):

        def worker(step: int = step) -> int:
            return sum(t.policy_tokens for g in pool.rollout(questions, step) for t in g.rollouts)

        def bare(step: int = step) -> int:
            return each(pool, "bare", questions, CONFIG.n, step)[0]

        def run(side: Callable[[], int]) -> tuple[int, float]:
            each(pool, "set", script)
            return _timed(side)

        sides = [run(side) for side in ((worker, bare) if step % 2 else (bare, worker))]
        (tokens, ours), (_, theirs) = sides if step % 2 else sides[::-1]
        if step:  # the first is a warm-up
            ratios.append(theirs / ours)
            speeds.append(tokens / ours)
    detail = f"{len(questions) * CONFIG.n} rollouts of one turn with an image, {IN_FLIGHT} in flight, lengths log-normal around 96 tokens; "
    detail += f"worker path {statistics.median(speeds):.0f} tokens/s; median of {ROUNDS}"
    return _entry("worker_vs_bare_engine", statistics.median(ratios), 0.95, "higher", "x", detail)


def _async_vs_lockstep(pool: RolloutPool) -> dict[str, Any]:
    """The tool's mean latency is the mean time of a turn with the engine full, measured first without a tool's wait."""
    script, questions = Script(mean=48, sigma=0.6, tool_turns=2), ask(16, 100)
    each(pool, "set", script)
    probe = [t for g in pool.rollout(questions, 0) for t in g.rollouts]
    turn_s = sum(t.stats.engine_seconds for t in probe) / (3 * len(probe))
    ratios = []
    for step in range(1, ROUNDS + 1):
        each(pool, "set", script, turn_s)
        begun = time.monotonic()
        groups = list(pool.rollout(questions, step))
        ours = time.monotonic() - begun
        _three_turns(groups)
        each(pool, "set", script, turn_s)
        _, theirs = _timed(partial(_lockstep, pool, questions, step))
        ratios.append(theirs / ours)
        GROUP_SECONDS.extend(max(t.stats.seconds for t in g.rollouts) for g in groups)
    detail = f"{len(questions) * CONFIG.n} rollouts of 3 turns of about 48 tokens, 2 tool calls each, {IN_FLIGHT} in flight on both sides; tool "
    detail += f"latency log-normal (sigma 1), mean {turn_s:.2f} s = a turn's; ratios {', '.join(f'{r:.2f}' for r in ratios)}"
    return _entry("async_vs_lockstep", statistics.median(ratios), 2.06, "higher", "x", detail)


def _lockstep(pool: RolloutPool, questions: Sequence[Question], step: int) -> int:
    return int(each(pool, "lockstep", questions, CONFIG.n, step, 3)[0])


def _fork_share(pool: RolloutPool) -> tuple[float, float]:
    """(least share of the whole blocks of a fork's prompt that was cached, share of forks on the engine with their prefix)."""
    each(pool, "set", Script(mean=64, sigma=0.6, tool_turns=1))
    pool.take_stats()
    questions = ask(8 * len(pool.workers), 200)
    groups = list(pool.rollout(questions, 0))
    futures = [
        pool.run(pool.fork(group, ForkRequest(t.rollout, _prefix(pool, t), k=4), 0))
        for group in groups
        for t in group.rollouts[:2]
    ]
    stats = [c.stats for future in futures for c in future.result(600).continuations[:1]]
    served = [s.cached_tokens / max((s.prompt_tokens - 1) // BLOCK * BLOCK, 1) for s in stats]
    return statistics.mean(served), pool.take_stats()["forks_home_share"]


def _axpo_vs_grpo(pool: RolloutPool) -> list[dict[str, Any]]:
    """A generation phase, from the first question sent to the last group there, over the same questions and seeds."""
    script = Script(mean=64, sigma=1.0, most=768, tool_turns=1, tool_rate=0.5, right=0.25)
    kinds: dict[str, dict[str, Any]] = {
        "grpo": {"algorithm": "grpo"},
        "streaming": {"resampler": {"schedule": "streaming"}},
        "batch": {"resampler": {"schedule": "batch"}},
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    forks: dict[str, list[set[tuple[str, int]]]] = {name: [] for name in kinds}
    recovered: dict[str, list[bool]] = {name: [] for name in kinds}
    flows = {name: _flow(pool, _recipe(**fields)) for name, fields in kinds.items()}
    for step in range(WALL_ROUNDS + 1):
        for name in list(kinds)[step % 3 :] + list(kinds)[: step % 3]:
            each(pool, "set", script)
            begun = time.monotonic()
            flows[name].feed(step)
            taken = flows[name].take(step)
            if step:
                seconds[name].append(time.monotonic() - begun)
                forks[name].append(
                    {(g.question.id, r.source) for g in taken.groups for r in g.resamples}
                )
                recovered[name] += [
                    max(c.reward or 0.0 for c in r.continuations) > 0
                    for g in taken.groups
                    for r in g.resamples
                ]
    overlap = sum(
        len(a & b) for a, b in zip(forks["streaming"], forks["batch"], strict=True)
    ) / max(sum(map(len, forks["batch"])), 1)
    return [_wall(name, seconds, recovered, overlap) for name in ("streaming", "batch")]


def _wall(
    name: str, seconds: dict[str, list[float]], recovered: dict[str, list[bool]], overlap: float
) -> dict[str, Any]:
    ratios = [ours / grpo for ours, grpo in zip(seconds[name], seconds["grpo"], strict=True)]
    detail = f"16 questions x 8, r = 0.25, K = 4, {STEP} in flight at most; thoughts log-normal (sigma 1) around 64 tokens, calls of 32; "
    detail += f"GRPO {statistics.median(seconds['grpo']):.1f} s; "
    detail += f"{len(recovered[name])} prefixes, {_share(recovered[name]):.0%} recovered"
    if name == "streaming":
        detail += f"; {overlap:.0%} of the prefixes that the batch rule chose"
    detail += f"; median of {', '.join(f'{r:.2f}' for r in sorted(ratios))}"
    return _entry(
        f"axpo_vs_grpo_wall_{name}", statistics.median(ratios), 1.08, "lower", "x", detail
    )


def _flow(pool: RolloutPool, recipe: Recipe) -> Flow:
    resampler = start_resampler(recipe.resampler, pool.ready(), recipe.rollout.n)
    return Flow(recipe, _Later(SmallDigitConfig()), pool, resampler)


class _Later(SmallDigit):
    """Questions that the other measurements do not ask."""

    def train(self, index: int) -> Question:
        return super().train(1000 + index)


def _recipe(**fields: Any) -> Recipe:
    base = {
        "name": "bench",
        "model": MODEL,
        "task": {"kind": "small_digit"},
        "steps": WALL_ROUNDS + 1,
        "questions_per_step": 16,
    }
    return parse_recipe(
        base | {"rollout": {"n": 8, "engine": {"weight_transfer": "shared_memory"}}} | fields
    )


def _prefix(pool: RolloutPool, trajectory: Trajectory) -> int:
    return fork_prefix_tokens(trajectory, pool.ready())


def _three_turns(groups: Sequence[Group]) -> None:
    if {t.stats.tool_calls for g in groups for t in g.rollouts} != {2}:
        raise AssertionError("not every rollout had three turns")


def _timed(run: Callable[[], int]) -> tuple[int, float]:
    begun = time.monotonic()
    tokens = run()
    return tokens, time.monotonic() - begun


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(len(values), 1)


def _entry(
    name: str, value: float, target: float, better: str, unit: str, detail: str
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 4),
        "target": target,
        "better": better,
        "unit": unit,
        "detail": detail,
    }
