"""The actors of a run: tool servers, rollout workers, resampler, learner. Started side by side, ended together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from axpo.config import Recipe
from axpo.session import learner_ranks, rollout_actors
from axpo.tasks import Task
from axpo.training.policy import Policy
from learner.learner import Learner
from resampler.client import ResamplerClient
from resampler.resampler import start_resampler
from rollout_workers.fleet import Log
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import SpecialTokens
from tool_server.pool import ToolPool


@dataclass
class Actors:
    """What a training step talks to."""

    pool: RolloutPool
    tools: ToolPool
    learner: Learner
    policy: Policy
    resampler: ResamplerClient
    tokens: SpecialTokens


@contextmanager
def training_actors(
    recipe: Recipe, task: Task, log: Log = lambda event, **fields: None
) -> Iterator[Actors]:
    """Everything a training run needs; engines and ZeRO-3 ranks load at the same time. `log` takes what happens to the workers."""
    with (
        rollout_actors(recipe, task, recipe.model, log) as (pool, tools),
        learner_ranks(recipe) as learner,
    ):
        tokens = pool.ready()
        resampler = start_resampler(recipe.resampler, tokens, recipe.rollout.n, recipe.seed)
        yield Actors(
            pool, tools, learner, Policy(learner, pool, recipe.rollout.colocated), resampler, tokens
        )
