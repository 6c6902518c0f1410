"""A flow without Ray: its pool, resampler and task answer in this process."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

from axpo.config import parse_recipe
from axpo.training.flow import Flow
from rollout_workers.trajectory import (
    EndReason,
    Question,
    Resample,
    RolloutStats,
    UnusableQuestion,
)
from tests.axpo.helpers import TOKENS, direct, resample, zooming
from tests.axpo.helpers import group as make_group
from tests.resampler.local import LocalResampler

WRONG_BOX, RIGHT_BOX = (0, 0, 1, 1), (5, 5, 9, 9)
SHORT = 1
"""The question whose forks come back with a continuation too few."""


class Pool:
    """Answer a question after `seconds[index]`.

    `broken` questions have a rollout without a reward. `easy` ones are answered right by all
    rollouts, `hard` ones by none. `buggy` ones raise, `unusable` ones cannot be asked.
    """

    def __init__(self, seconds=None, broken=(), buggy=(), easy=(), hard=(), unusable=()):
        self.seconds = seconds or {}
        self.broken, self.buggy, self.easy, self.hard = broken, buggy, easy, hard
        self.unusable = unusable
        self.asked = []  # (question, batch): the seeds of its rollouts derive from both
        self.forks = []  # (question, rollout, questions in flight at that time)
        self.in_flight = self.most = 0
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def group(self, question, batch):
        index = int(question.id)
        self.asked.append((index, batch))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds.get(index, 0.01))
        finally:
            self.in_flight -= 1
        if index in self.buggy:
            raise IndexError("a bug")
        if index in self.unusable:
            raise UnusableQuestion(f"a.jsonl, row {index + 1}: images: c.jpg cannot be read")
        group = make_group(self.rollouts(index), question=question.id)
        return group, group

    def rollouts(self, index):
        without_tool, with_tool = float(index not in self.hard), float(index in self.easy)
        first = direct(0, without_tool, str(index))
        second = zooming(1, with_tool, WRONG_BOX, str(index))
        third = zooming(2, with_tool, WRONG_BOX, str(index))
        if index in self.broken:
            fault = RolloutStats(fault="KeyError: 'unit'")
            third = replace(third, reward=None, end=EndReason.VERIFIER_FAILURE, stats=fault)
        return [first, second, third]

    async def fork(self, group, request, batch):
        index = int(group.question.id)
        self.forks.append((index, request.rollout, self.in_flight))
        if request.min_distinct_calls > 1:  # all continuations call alike
            return Resample(request.rollout, request.prefix_tokens, ())
        # Of each prefix the first continuation is right.
        outcomes = [(RIGHT_BOX, float(k == 0), 9) for k in range(request.k)]
        made = resample(group.rollouts[request.rollout], outcomes)
        if index == SHORT:
            return replace(made, continuations=made.continuations[:-1])
        return made


class Task:
    def train(self, index):
        return Question(str(index), "?", (), "7", {"kind": f"kind {index}"})


def recipe(**fields):
    """Return a recipe of four steps of four questions x three rollouts."""
    return parse_recipe(
        {
            "name": "flow",
            "model": "axpo/models/qwen3-vl-tiny",
            "task": {"kind": "small_digit"},
            "steps": 4,
            "questions_per_step": 4,
            "rollout": {"n": 3, "engine": {"weight_transfer": "shared_memory"}},
            "resampler": resampling(),
        }
        | fields
    )


def resampling(**fields):
    """Return a `resampler` section: two continuations of a prefix, six for a batch of four."""
    return {"k": 2, "budget": {"ratio": 0.5}, "schedule": "batch"} | fields


def local_resampler(settings):
    return LocalResampler(settings.resampler, TOKENS, settings.rollout.n)


def start(pool=None, cursor=None, **fields):
    """Return a flow, its pool, and the list of its events."""
    events, settings, pool = [], recipe(**fields), pool or Pool()

    def log(event, **values):
        events.append({"event": event} | values)

    flow = Flow(settings, Task(), pool, local_resampler(settings), log)
    if cursor is not None:
        flow.resume(cursor)
    return flow, pool, events


def step_of(flow, step):
    """Make one step; return its batch."""
    flow.feed(step)
    return flow.take(step)


def ids(taken):
    """Return the questions of a batch."""
    return [int(group.question.id) for group in taken.groups]
