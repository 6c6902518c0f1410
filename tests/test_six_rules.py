"""Each rule of the method lives in the function that docs/method.md names.

Each of those functions is replaced, one at a time, by one that raises. A training step must then
fail, because the real step runs through it. Everything of the step is real, but for the engine,
the tool and the learner's model: flow, rollout worker, resampler, credit and loss.
"""

import asyncio
import re
import threading
from pathlib import Path
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch

from axpo.config import parse_recipe
from axpo.registry import find
from axpo.training.actors import Actors
from axpo.training.flow import Flow
from axpo.training.policy import Policy
from axpo.training.trainer import train_step
from learner.loss import TrainedTokens, policy_loss
from rollout_workers.chat import Chat
from rollout_workers.settings import WorkerSettings
from rollout_workers.worker import RolloutWorker
from tests.axpo.training.test_trainer import MODEL, RECIPE, Phases, ScriptedEngine, SevenTask
from tests.resampler.local import LocalResampler
from tests.rollout_workers.helpers import MockTools, zoomed

HOMES = [
    "resampler.select:triggered",
    "resampler.places:FirstCall.points",
    "resampler.rankings:Confidence.score",
    "resampler.select:allocate",
    "rollout_workers.trajectory:frozen_prefix",
    "learner.credit:credit",
    "learner.loss:policy_loss",
]


def function_at(home: str) -> FunctionType:
    """Return the function at `module:name`, or the method at `module:Class.name`."""
    module, _, path = home.partition(":")
    owner, _, method = path.partition(".")
    found = find(f"{module}:{owner}")
    return getattr(found, method) if method else found


def taken_out(*arguments, **options):
    raise NotImplementedError("this rule was taken out")


class LocalPool:
    """A pool of one real rollout worker in this process, with a scripted engine."""

    workers = ()

    def __init__(self, recipe):
        tools = MockTools(zoomed, ("image_zoom_in",))
        settings = WorkerSettings(MODEL, recipe.rollout, tools, SevenTask.verify, run_seed=0)
        self.n = recipe.rollout.n
        self.worker = RolloutWorker(0, settings, engine_factory=ScriptedEngine)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def join_with(self, welcome):
        pass

    def close(self):
        self.run(end_tasks()).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def group(self, question, step):
        group = await self.worker.rollout(question, self.n, step)
        return group, group

    async def fork(self, group, request, step):
        return await self.worker.fork(
            group.question, group.rollouts[request.rollout], request, step
        )


async def end_tasks():
    """Cancel what a broken step left behind; a question that is cancelled still says so."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


class LossLearner:
    """A learner without a model: it takes the loss of made-up log-probabilities."""

    def __init__(self, config):
        self.config = config

    def update(self, items):
        config, total = self.config, 0.0
        for item in items:
            advantages = torch.from_numpy(item.advantages[item.mask])
            logprobs = torch.full_like(advantages, -0.5, requires_grad=True)
            same = logprobs.detach()
            tokens = TrainedTokens(
                logprobs=logprobs,
                old=same,
                advantages=advantages,
                weights=torch.full_like(advantages, item.weight / len(advantages)),
                items=torch.zeros(len(advantages), dtype=torch.long),
                correction=torch.ones_like(advantages),
                reference=same,
            )
            total += policy_loss(tokens, config.objective, config.kl_beta).loss.item()
        return {"loss": total}


def step(monkeypatch, schedule):
    """Make one training step."""
    # Without Ray there is no object store to keep the images in.
    monkeypatch.setattr("axpo.training.asking.stored", lambda question: question)
    recipe = parse_recipe(
        RECIPE.model_dump(mode="json"), [f"resampler.schedule={schedule}"], "mock"
    )
    pool = LocalPool(recipe)
    tokens = Chat.load(MODEL).tokens
    learner = LossLearner(recipe.learner)
    resampler = LocalResampler(recipe.resampler, tokens, recipe.rollout.n)
    actors = Actors(pool, SimpleNamespace(), learner, Policy(learner, pool), resampler, tokens)
    flow = Flow(recipe, SevenTask(), pool, resampler)
    try:
        return train_step(recipe, actors, flow, 0, Phases())
    finally:
        flow.close()
        pool.close()


@pytest.mark.parametrize("schedule", ["batch", "streaming"])
def test_with_all_rules_a_step_forks_and_trains(monkeypatch, schedule):
    result = step(monkeypatch, schedule)
    assert [len(group.resamples) for group in result.batch.groups] == [1, 1]
    # By hand: ratio 1, so the loss is minus the weighted sum of the advantages, entry by entry.
    advantages = [item.weight * item.advantages[item.mask].mean() for item in result.items]
    assert result.update["loss"] == pytest.approx(-np.sum(advantages), abs=1e-6)


@pytest.mark.parametrize("schedule", ["batch", "streaming"])
@pytest.mark.parametrize("home", HOMES)
def test_a_step_fails_without_the_function_that_is_the_home_of_a_rule(monkeypatch, home, schedule):
    # The code itself is replaced, so it does not matter under which name the function was imported.
    monkeypatch.setattr(function_at(home), "__code__", taken_out.__code__)
    with pytest.raises(NotImplementedError, match="this rule was taken out"):
        step(monkeypatch, schedule)


def test_the_page_names_these_homes_and_no_others():
    table = Path("docs/method.md").read_text(encoding="utf-8").partition("| rule | home |")[2]
    rows = [row for row in table.partition("\n\n")[0].splitlines() if row[:3].strip("| ").isdigit()]
    named = [home for row in rows for home in re.findall(r"`([^`]+)`", row)]
    assert len(rows) == 6
    assert [re.sub(r"\.py: ", ":", home).replace("/", ".") for home in named] == HOMES
