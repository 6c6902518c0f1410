"""The actors of a run, started side by side and ended together.

They are tool servers, rollout workers, the resampler, and the learner's ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from axpo.config import Recipe
from axpo.placement import Parts, Plan
from axpo.session import learner_ranks, local_path, places, rollout_actors
from axpo.spans import span
from axpo.tasks import Task
from axpo.training.policy import Policy
from axpo.training.telling import Telling
from learner.learner import Learner
from resampler.client import ResamplerClient
from resampler.resampler import start_resampler
from rollout_workers.fleet import no_log
from rollout_workers.pool import RolloutPool
from rollout_workers.special_tokens import tokens_of
from rollout_workers.trajectory import SpecialTokens
from tool_server.pool import ToolPool

IMPORTS_S = 60.0
"""Seconds that ranks wait at most for the imports of the engines."""


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
    recipe: Recipe, task: Task, run: Path | None = None, telling: Telling | None = None
) -> Iterator[Actors]:
    """Start everything that a training run needs.

    Engines and ranks load at the same time. If they share GPUs, the engines load first and then
    sleep: vLLM measures what is free of a GPU while it starts.

    Args:
        recipe: which actors, and how many.
        task: gives the system text and verifies answers.
        run: the run's folder, which all nodes must share; None: nothing is saved.
        telling: tells people what happens to the actors; None: nobody is told.
    """
    colocated = recipe.rollout.colocated
    telling = telling or Telling(no_log, _nothing, 0, Path())
    with ExitStack() as stack:
        with telling.starting.reminding():
            placed = stack.enter_context(places(recipe, Parts(), run=run))
            telling.placed(placed.plan)
            started = rollout_actors(recipe, task, recipe.model, telling.log, placed)
            pool, tools = stack.enter_context(started)
            telling.has(pool)
            telling.starting.is_there("tool server")
            if colocated:
                pool.ready()
                pool.sleep()
            # The tokens are the engines' own: all read them from the model's folder.
            tokens = tokens_of(local_path(recipe.model))
            resampler = start_resampler(recipe.resampler, tokens, recipe.rollout.n, recipe.seed)
            if _engines_first(recipe, placed.plan):
                with span("waits for engines"):
                    pool.imported(IMPORTS_S)
            learner = stack.enter_context(learner_ranks(recipe, placed))
            telling.starting.is_there("rank")
            # The ranks have loaded the model meanwhile; now the engines must serve.
            pool.ready()
        policy = Policy(learner, pool, colocated=colocated)
        yield Actors(pool, tools, learner, policy, resampler, tokens)


def _engines_first(recipe: Recipe, plan: Plan) -> bool:
    """Tell whether the ranks' imports would slow down those of the engines.

    An engine takes longest: two processes import vLLM, then one of them makes the engine. If ranks
    import beside them on too few cores, the engine is made alone at the end, on one core. So they
    begin when the engines' imports are done.
    """
    importing = 2 * recipe.rollout.workers + recipe.learner.ranks
    return importing > sum(node.cpus for node in plan.nodes)


def _nothing(text: str) -> None:
    """Tell nobody."""
