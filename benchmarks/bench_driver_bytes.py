"""What passes through the driver in one step whose rollouts look at large crops.

64 questions, 8 rollouts each, a crop of 1,024 x 1,024 pixels in every rollout and continuation.
Pool, flow, resampler, credit, the learner's driver side and its planning of rows are the real ones,
on real actors. Engines only wait. The ranks do what a rank does up to the forward pass: they plan,
fetch the images of their own rows, and process them.

The questions have no picture of their own: the driver reads those, and puts each into the store
once. What a run writes for people (`logging.groups_kept`) is fetched when it is written.

The same step is measured twice: as it is, and with images by value, as it was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import ray

import learner.learner
from axpo.config import Recipe, parse_recipe
from axpo.training.flow import Flow
from benchmarks.cluster import local_ray
from benchmarks.engines import MODEL
from benchmarks.result import Entry, at_most
from benchmarks.traffic import Traffic, counted
from learner.config import RankSettings
from learner.credit import TrainItem, credit
from learner.learner import Learner, _RankActor
from resampler.resampler import start_resampler
from rollout_workers.chat import Chat
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    ObservationSegment,
    Pixels,
    PolicySegment,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
)

QUESTIONS = 64
N = 8
SIDE = 1024
TURN_TOKENS = 300
"""Of each of a rollout's two turns."""
WORKERS = 2
RANKS = 2
RIGHT = 0.3
"""Share of right rollouts."""


class CroppingWorker:
    """A rollout worker whose rollouts call a tool once, and see a crop of their own."""

    def __init__(self, index: int, settings: WorkerSettings) -> None:
        self.index = index
        self.tokens = Chat.load(settings.model).tokens

    async def ready(self) -> SpecialTokens:
        """Return at once."""
        return self.tokens

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
        """Return n rollouts, some of them right."""
        rng = np.random.default_rng([int(question.id), step])
        rollouts = []
        for index in range(n):
            call, answer = self._turn(rng, calls=True), self._turn(rng)
            segments = (call, self._crop(rng), answer)
            reward = float(rng.uniform() < RIGHT)
            rollouts.append(self._trajectory(question, index, reward, segments))
        return Group(question, tuple(rollouts), self.index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        """Return continuations, of which the first is right."""
        rng = np.random.default_rng([int(question.id), step, source.rollout])
        prefix = frozen_prefix(source, request.prefix_tokens)
        continuations = []
        for k in range(request.k):
            segments = (*prefix, self._turn(rng), self._crop(rng), self._turn(rng))
            made = self._trajectory(question, source.rollout, float(k == 0), segments)
            point = ForkPoint(source.rollout, k, request.prefix_tokens)
            continuations.append(replace(made, fork=point))
        return Resample(source.rollout, request.prefix_tokens, tuple(continuations))

    async def shutdown(self) -> None:
        """Have nothing to end."""

    def _turn(self, rng: np.random.Generator, *, calls: bool = False) -> PolicySegment:
        ids = _words(rng, TURN_TOKENS)
        if calls:
            assert self.tokens.think_close is not None
            ids[100], ids[101] = self.tokens.think_close, self.tokens.call_open
            ids[-2] = self.tokens.call_close
        ids[-1] = self.tokens.im_end
        logprobs, entropies = rng.uniform(size=(2, TURN_TOKENS)).astype(np.float32)
        return PolicySegment(ids, -logprobs, 0, entropies)

    def _crop(self, rng: np.random.Generator) -> ObservationSegment:
        shown = np.array([self.tokens.image_pad], np.int32)
        crop: Pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return ObservationSegment(np.concatenate([_words(rng, 8), shown]), (crop,))

    def _trajectory(
        self, question: Question, rollout: int, reward: float, segments: Sequence[Any]
    ) -> Trajectory:
        return Trajectory(
            question_id=question.id,
            rollout=rollout,
            prompt_ids=np.full(100, 20, np.int32),
            segments=tuple(segments),
            end=EndReason.ANSWERED,
            answer="7",
            reward=reward,
        )


def _words(rng: np.random.Generator, count: int) -> Ids:
    return rng.integers(20, 300, count).astype(np.int32)


class ReadingRank(_RankActor):
    """A rank that stops before the forward pass."""

    def start(self, settings: RankSettings) -> None:
        """Prepare what plans and reads."""
        self.rank: Any = Reader(settings)


class Reader:
    """Plan an update and build this rank's micro-batches, as `learner.update` does."""

    def __init__(self, settings: RankSettings) -> None:
        import torch
        import transformers

        from learner.images import image_processor
        from learner.passes import Passes

        config = transformers.AutoConfig.from_pretrained(settings.model)
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config)
        processor = image_processor(settings.model)
        cpu = torch.device("cpu")
        self._passes = Passes(model, processor, settings.config, settings.rank, cpu)

    def update(self, items: list[TrainItem]) -> dict[str, float]:
        """Return how many patches of images this rank has processed."""
        pass_ = self._passes.plan(items, self._passes.images())
        batches = self._passes.micro_batches(pass_)
        return {"patches": float(sum(len(batch.pixel_values) for batch in batches))}


class _Task:
    def train(self, index: int) -> Question:
        return Question(str(index), "?", (), "7")


def measure() -> list[Entry]:
    """Return the entry `driver_mb_per_step`."""
    with local_ray():
        now = _step()
        with _by_value():
            before = _step()
    detail = (
        f"{now.received / 1e6:.1f} MB received, {now.sent / 1e6:.1f} MB sent; with images by value "
        f"{before.received / 1e6:,.0f} and {before.sent / 1e6:,.0f} MB. {QUESTIONS} questions x "
        f"{N} rollouts and their forks, each with a crop of {SIDE} x {SIDE}; what the driver "
        "serializes for Ray or gets from it"
    )
    return [at_most("driver_mb_per_step", round(now.megabytes, 1), 20, "MB", detail)]


def _step() -> Traffic:
    """Return the traffic of one step: rollouts, forks, credit, update."""
    recipe = _recipe()
    settings = WorkerSettings(MODEL, recipe.rollout, None, _never_asked, run_seed=0)  # type: ignore[arg-type]
    with ExitStack() as stack:
        pool = RolloutPool(settings, actor_class=CroppingWorker)
        stack.callback(pool.shutdown)
        stack.enter_context(mock.patch.object(learner.learner, "_RankActor", ReadingRank))
        ranks = Learner(MODEL, recipe.learner)
        stack.callback(ranks.shutdown)
        tokens = pool.ready()
        resampler = start_resampler(recipe.resampler, tokens, N)
        stack.callback(ray.kill, resampler.actor)
        flow = Flow(recipe, _Task(), pool, resampler)  # type: ignore[arg-type]
        with counted() as traffic:
            flow.feed(0)
            batch = flow.take(0)
            patches = ranks.update(credit(batch.groups, tokens, recipe.learner))["patches"]
        assert len(batch.groups) == QUESTIONS
        assert patches > 0
    return traffic


@contextmanager
def _by_value() -> Iterator[None]:
    """Leave images in their trajectories, as before `rollout_workers.handing_over`."""

    class ByValue(CroppingWorker):
        async def rollout(self, question: Question, n: int, *arguments: Any, **options: Any) -> Any:
            return await super().rollout(question, n, *arguments, **options), *[()] * n

        async def fork(self, *arguments: Any) -> Any:
            request: ForkRequest = arguments[2]
            return await super().fork(*arguments), *[()] * request.k

    with (
        mock.patch("rollout_workers.pool.actor_of", return_value=ByValue),
        mock.patch("learner.learner.without_pixels", list),
    ):
        yield


def _recipe() -> Recipe:
    return parse_recipe(
        {
            "name": "driver_bytes",
            "model": MODEL,
            "task": {"kind": "small_digit"},
            "steps": 1,
            "questions_per_step": QUESTIONS,
            "rollout": {
                "n": N,
                "workers": WORKERS,
                "cpus_per_worker": 0.1,
                "health_s": 300,
                "engine": {"weight_transfer": "shared_memory"},
            },
            "learner": {"ranks": RANKS, "cpus_per_rank": 0.1, "gpus_per_rank": 0},
        }
    )


def _never_asked(question: Question, answer: str | None) -> float:
    return 0.0


if __name__ == "__main__":
    for entry in measure():
        print(entry)
