"""Forks the selected prefixes on the engines that generated them, and hands the groups back with their resamples."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from resampler.config import ResamplerConfig
from resampler.select import Candidate, allocate, budget, candidates
from rollout_workers.trajectory import Group, Resample, SpecialTokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResampleStats:
    """Counts of one batch."""

    triggered: int  # groups
    candidates: int  # prefixes of triggered groups
    selected: int  # prefixes sent to be forked
    dropped: int  # of these, without K scored continuations: infrastructure failed or the deadline passed


class Resampler:
    """Waits for a whole batch, as the paper's budget does. A plain class; `start_resampler` makes it an actor."""

    def __init__(self, config: ResamplerConfig, tokens: SpecialTokens, workers: Sequence[Any], n: int, seed: int = 0) -> None:
        """`workers` are handles whose `fork.remote(question, source, prefix_tokens, k, step)` gives an awaitable `Resample`."""
        self._config, self._tokens, self._workers, self._n, self._seed = config, tokens, list(workers), n, seed
        self._stats = ResampleStats(0, 0, 0, 0)

    async def resample(self, groups: Sequence[Group], step: int) -> list[Group]:
        """The same groups in the same order, those selected with their resamples in the order of their sources.

        A fork that fails for infrastructure is dropped whole; an error in a worker's code is raised.
        """
        found = candidates(groups, self._tokens, self._config.ranking, seed=self._seed, step=step)
        prefixes = budget(len(groups), self._n, self._config.k, self._config.budget_ratio) // self._config.k
        selected = allocate(found, prefixes)
        kept = await self._fork(groups, selected, step)
        self._stats = ResampleStats(
            triggered=sum(bool(f) for f in found),
            candidates=sum(len(f) for f in found),
            selected=len(selected),
            dropped=len(selected) - len(kept),
        )
        return [
            replace(group, resamples=tuple(sorted((r for c, r in kept if c.group == index), key=lambda r: r.source)))
            for index, group in enumerate(groups)
        ]

    async def stats(self) -> ResampleStats:
        """Counts of the last batch."""
        return self._stats

    async def _fork(self, groups: Sequence[Group], selected: Sequence[Candidate], step: int) -> list[tuple[Candidate, Resample]]:
        async def one(candidate: Candidate) -> Resample:
            group = groups[candidate.group]
            source = next(t for t in group.rollouts if t.rollout == candidate.rollout)
            worker = self._workers[group.worker]
            return await worker.fork.remote(group.question, source, candidate.prefix_tokens, self._config.k, step)

        from ray.exceptions import RayError, RayTaskError

        tasks = [asyncio.create_task(one(candidate)) for candidate in selected]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._config.deadline_s)
            for task in late:
                task.cancel()
        kept = []
        for candidate, task in zip(selected, tasks, strict=True):
            name = f"fork of rollout {candidate.rollout} of question {groups[candidate.group].question.id}"
            if not task.done():
                log.warning("%s dropped: not back after %g s", name, self._config.deadline_s)
                continue
            error = task.exception()
            if error is not None and (isinstance(error, RayTaskError) or not isinstance(error, RayError)):
                raise error
            if error is not None:
                log.warning("%s dropped: %s", name, error)
            elif not self._whole(task.result()):
                log.warning("%s dropped: fewer than K continuations were scored", name)
            else:
                kept.append((candidate, task.result()))
        return kept

    def _whole(self, resample: Resample) -> bool:
        return len(resample.continuations) == self._config.k and all(t.reward is not None for t in resample.continuations)


def start_resampler(config: ResamplerConfig, tokens: SpecialTokens, workers: Sequence[Any], n: int, seed: int = 0) -> Any:
    """The resampler as a Ray actor."""
    import ray

    return ray.remote(Resampler).options(num_cpus=0.1).remote(config, tokens, workers, n, seed)
