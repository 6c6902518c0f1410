"""The actors of a run, started side by side and ended together.

They are tool servers, rollout workers, the resampler, and the learner's ranks.
"""

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
from rollout_workers.fleet import Log, no_log
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import SpecialTokens
from tool_server.pool import ToolPool


@dataclass(frozen=True)
class Actors:
    """What a training step talks to."""

    pool: RolloutPool
    tools: ToolPool
    learner: Learner
    policy: Policy
    resampler: ResamplerClient
    tokens: SpecialTokens


@contextmanager
def training_actors(recipe: Recipe, task: Task, log: Log = no_log) -> Iterator[Actors]:
    """Start everything that a training run needs; engines and ranks load at the same time.

    Args:
        recipe: which actors, and how many.
        task: gives the system text and verifies answers.
        log: takes what happens to the workers.
    """
    with (
        rollout_actors(recipe, task, recipe.model, log) as (pool, tools),
        learner_ranks(recipe) as learner,
    ):
        # The ranks have loaded the model meanwhile; now the engines must serve.
        tokens = pool.ready()
        resampler = start_resampler(recipe.resampler, tokens, recipe.rollout.n, recipe.seed)
        policy = Policy(learner, pool, colocated=recipe.rollout.colocated)
        yield Actors(pool, tools, learner, policy, resampler, tokens)
