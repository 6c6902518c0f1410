"""The actors of a run, started side by side and ended together.

They are tool servers, rollout workers, the resampler, and the learner's ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from axpo.config import Recipe
from axpo.placement import Parts
from axpo.session import learner_ranks, places, rollout_actors
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
def training_actors(
    recipe: Recipe, task: Task, log: Log = no_log, run: Path | None = None
) -> Iterator[Actors]:
    """Start everything that a training run needs.

    Engines and ranks load at the same time. If they share GPUs, the engines load first and then
    sleep: vLLM measures what is free of a GPU while it starts.

    Args:
        recipe: which actors, and how many.
        task: gives the system text and verifies answers.
        log: takes what happens to the workers.
        run: the run's folder, which all nodes must share; None: nothing is saved.
    """
    colocated = recipe.rollout.colocated
    with ExitStack() as stack:
        placed = stack.enter_context(places(recipe, Parts(), run=run))
        started = rollout_actors(recipe, task, recipe.model, log, placed)
        pool, tools = stack.enter_context(started)
        if colocated:
            pool.ready()
            pool.sleep()
        learner = stack.enter_context(learner_ranks(recipe, placed))
        # The ranks have loaded the model meanwhile; now the engines must serve.
        tokens = pool.ready()
        resampler = start_resampler(recipe.resampler, tokens, recipe.rollout.n, recipe.seed)
        policy = Policy(learner, pool, colocated=colocated)
        yield Actors(pool, tools, learner, policy, resampler, tokens)
