"""What a step of 1,024 questions x 8 costs beside engines and model: credit, transport, planning.

The driver credits the groups and sends the items. Each rank, a Ray actor with no policy, fetches
all of them, makes the rows and plans the micro-batches, as `Learner.update` does before its first
forward pass. A share of a step of 60 s says whether that would matter.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from axpo.tasks.embedded.small_digit import SmallDigitConfig
from benchmarks.cluster import local_ray
from benchmarks.engines import MODEL
from benchmarks.result import Entry, at_most
from learner.config import LearnerConfig
from learner.credit import TrainItem, credit
from learner.learner import sent
from resampler.places import FirstCall
from rollout_workers.chat import Chat
from rollout_workers.garbage import few_collections, pass_over_what_is_here
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    ObservationSegment,
    PolicySegment,
    Question,
    Resample,
    Segment,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
    stored,
)

QUESTIONS, N, K = 1_024, 8, 4
FORKED = 512
"""Prefixes: a quarter of extra rollouts."""
STEP_S = 60.0
TURN_TOKENS = 350
"""Mean length of each of two turns; log-normal."""
SIGMA = 0.6
RANKS = 2
ROUNDS = 3
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Seconds:
    """What the parts of a step took."""

    credit: float
    send: float
    fetch: float  # of the slower rank
    plan: float  # of the slower rank

    @property
    def whole(self) -> float:
        """Return their sum: nothing of it runs beside the engines of a synchronous run."""
        return self.credit + self.send + self.fetch + self.plan


class PlanningRank:
    """A rank that stops before its first forward pass."""

    def start(self, config: LearnerConfig) -> None:
        """Load what planning reads of the model."""
        from transformers import AutoModelForImageTextToText

        from learner.images import image_processor
        from learner.passes import Passes

        model = AutoModelForImageTextToText.from_pretrained(MODEL)
        self._passes = Passes(model, image_processor(MODEL), config, 0, "cpu")
        pass_over_what_is_here()

    def plan(self, reference: list[Any]) -> tuple[float, float]:
        """Return the seconds of the fetch and those of rows and plan."""
        begun = time.monotonic()
        items: list[TrainItem] = ray.get(reference[0], timeout=DEADLINE_S)
        fetched = time.monotonic()
        self._passes.plan(items, self._passes.images())
        return fetched - begun, time.monotonic() - fetched


def measure() -> list[Entry]:
    """Return `step_overhead_1024`: the share of a step of 60 s."""
    chat = Chat.load(MODEL)
    config = LearnerConfig(ranks=RANKS, micro_batch_tokens=16_384)
    with local_ray(), few_collections():
        ranks = [ray.remote(PlanningRank).options(num_cpus=0.5).remote() for _ in range(RANKS)]
        ray.get([rank.start.remote(config) for rank in ranks], timeout=DEADLINE_S)
        groups = _groups(chat, np.random.default_rng(0))
        # The first round is a warm-up.
        rounds = [_step(groups, chat.tokens, config, ranks) for _ in range(ROUNDS + 1)][1:]
    median = statistics.median(seconds.whole for seconds in rounds)
    typical = min(rounds, key=lambda seconds: abs(seconds.whole - median))
    detail = (
        f"{QUESTIONS:,} questions x {N} and {FORKED * K:,} continuations, two turns of about "
        f"{TURN_TOKENS} tokens, a question image each; credit {typical.credit:.2f} s, "
        f"ray.put {typical.send:.2f} s, fetch {typical.fetch:.2f} s, rows and plan "
        f"{typical.plan:.2f} s on the slower of {RANKS} ranks; of a step of {STEP_S:.0f} s, "
        f"median of {ROUNDS}"
    )
    return [at_most("step_overhead_1024", round(median / STEP_S, 4), 0.05, "share", detail)]


def _step(
    groups: Sequence[Group], tokens: SpecialTokens, config: LearnerConfig, ranks: Sequence[Any]
) -> Seconds:
    fresh = [_as_received(group) for group in groups]
    begun = time.monotonic()
    items = credit(fresh, tokens, config)
    credited = time.monotonic()
    reference = sent(items)
    put = time.monotonic()
    told = ray.get([rank.plan.remote([reference]) for rank in ranks], timeout=DEADLINE_S)
    fetch, plan = max(told, key=sum)
    return Seconds(credited - begun, put - credited, fetch, plan)


def _as_received(group: Group) -> Group:
    """Return the group with nothing derived from its trajectories yet."""
    resamples = [
        replace(resample, continuations=tuple(replace(made) for made in resample.continuations))
        for resample in group.resamples
    ]
    rollouts = tuple(replace(rollout) for rollout in group.rollouts)
    return replace(group, rollouts=rollouts, resamples=tuple(resamples))


def _groups(chat: Chat, rng: np.random.Generator) -> list[Group]:
    """Return the groups of a batch; every second one has a forked source."""
    task = SmallDigitConfig().load()
    groups = []
    for index in range(QUESTIONS):
        question = stored(task.train(index))
        prompt = chat.prompt(question.text, question.places, [], None)
        rollouts = [_rollout(question, prompt, i, chat.tokens, rng) for i in range(N)]
        group = Group(question, tuple(rollouts), worker=0)
        if index % (QUESTIONS // FORKED) == 0:
            resample = _resample(question, rollouts[0], chat.tokens, rng)
            group = replace(group, resamples=(resample,))
        groups.append(group)
    return groups


def _rollout(
    question: Question, prompt: Ids, index: int, tokens: SpecialTokens, rng: np.random.Generator
) -> Trajectory:
    """Return a rollout whose first half is right in every group: all of them train."""
    call = _turn(rng)
    assert tokens.think_close is not None
    call[:4] = [50, tokens.think_close, tokens.call_open, 51]
    call[-2:] = [tokens.call_close, tokens.im_end]
    segments = (_sampled(call, rng), ObservationSegment(_turn(rng)[:40]), _sampled(_turn(rng), rng))
    return _trajectory(question, prompt, index, segments, float(index >= N // 2))


def _resample(
    question: Question, source: Trajectory, tokens: SpecialTokens, rng: np.random.Generator
) -> Resample:
    (point,) = FirstCall().points(source, tokens)
    prefix = frozen_prefix(source, point.prefix_tokens)
    made = []
    for k in range(K):
        segments = (*prefix, _sampled(_turn(rng), rng))
        continuation = _trajectory(
            question, source.prompt_ids, source.rollout, segments, float(k == 0)
        )
        made.append(replace(continuation, fork=ForkPoint(source.rollout, k, point.prefix_tokens)))
    return Resample(source.rollout, point.prefix_tokens, tuple(made))


def _turn(rng: np.random.Generator) -> Ids:
    length = int(np.clip(rng.lognormal(np.log(TURN_TOKENS) - SIGMA**2 / 2, SIGMA), 50, 2_000))
    return rng.integers(20, 300, length).astype(np.int32)


def _sampled(ids: Ids, rng: np.random.Generator) -> PolicySegment:
    return PolicySegment(ids, -rng.uniform(size=len(ids)).astype(np.float32), 0)


def _trajectory(
    question: Question, prompt: Ids, index: int, segments: tuple[Segment, ...], reward: float
) -> Trajectory:
    return Trajectory(
        question.id, index, prompt, segments, EndReason.ANSWERED, answer="7", reward=reward
    )
