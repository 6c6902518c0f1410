"""Groups, forks, retries and scoring of a worker, with a mock engine."""

import asyncio
import sys
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from axpo.tasks.verifiers import verifiers
from rollout_workers import pictures
from rollout_workers import worker as worker_module
from rollout_workers.chat import Chat
from rollout_workers.config import RolloutConfig
from rollout_workers.handing_over import with_images
from rollout_workers.image_rule import ImagesConfig
from rollout_workers.images import ImagesLost, StoredImage, digest_of, image_size
from rollout_workers.interfaces import EngineFailure
from rollout_workers.seeds import Seeds
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    UnusableQuestion,
    tool_call_spans,
    turns,
)
from rollout_workers.worker import RolloutWorker
from tests.rollout_workers.helpers import ZOOM, MockEngine, MockTools, picture, question, zoomed

CALL = f"look\n</think>\n{ZOOM}"
ANSWER = "clear\n</think>\n7"


def right(question, answer):
    return float(answer == question.answer)


def start(model, script, verify=right, images=ImagesConfig(), **config):
    """Starts a worker on a scripted engine; returns (worker, its engine)."""
    engines = []

    def factory(settings, tokens):
        engines.append(MockEngine(worker_chat(model), script))
        return engines[0]

    config = RolloutConfig(**{"n": 2, "deadline_s": 5.0} | config)
    settings = WorkerSettings(
        model, config, MockTools(zoomed), verify, run_seed=9, system="look closely", images=images
    )
    worker = RolloutWorker(1, settings, engine_factory=factory)
    return worker, engines[0]


def first_call(source, tokens, k, **options):
    """Asks for k continuations of the source's first call."""
    prefix_tokens = tool_call_spans(source, tokens)[0][0] + 1
    return ForkRequest(source.rollout, prefix_tokens, k, **options)


def worker_chat(model):
    return Chat.load(model)


def test_a_group_is_scored_and_knows_its_worker(model):
    worker, engine = start(model, lambda i: [ANSWER, "clear\n</think>\n8", ANSWER][i])
    group = asyncio.run(worker.rollout(question(), n=3, step=5, temperature=0.25))
    assert group.worker == 1
    assert [t.rollout for t in group.rollouts] == [0, 1, 2]
    assert group.rewards.tolist() == [1, 0, 1]
    seeds = [Seeds(9, 5, "q1", i).of_turn(0) for i in range(3)]
    assert [r["seed"] for r in engine.requests] == seeds
    assert {r["temperature"] for r in engine.requests} == {0.25}


def test_a_question_that_does_not_fit_the_context_is_refused_before_any_request(model):
    asked = question(images=3)
    schemas = asyncio.run(MockTools(zoomed).schemas())
    prompt = len(worker_chat(model).prompt(asked.text, (0, 0, 0), schemas, "look closely"))
    # 64 x 64 pixels are 4 tokens, which replace a placeholder each.
    tokens = prompt - 3 + 3 * 4
    limits = {"max_turn_tokens": 1, "max_context_tokens": tokens + 1}
    worker, _ = start(model, lambda i: ANSWER, **limits)
    assert asyncio.run(worker.rollout(asked, n=2, step=0)).rewards.tolist() == [1, 1]
    worker, engine = start(model, lambda i: ANSWER, **limits | {"max_context_tokens": tokens})
    with pytest.raises(
        UnusableQuestion,
        match=f"^question q1: 12 tokens of images and {prompt - 3} of text, but .* is {tokens}$",
    ):
        asyncio.run(worker.rollout(asked, n=2, step=0))
    assert engine.requests == []


def test_the_limits_of_a_recipe_count_when_images_are_counted(model):
    asked = question()
    worker, _ = start(model, lambda i: ANSWER, images=ImagesConfig(max_pixels=4096))
    assert asyncio.run(worker.rollout(asked, n=2, step=0)).rewards.tolist() == [1, 1]
    assert worker._context.rule.tokens(128, 128) == 4


def test_a_stored_image_is_hashed_once_for_rollouts_and_forks(model, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        pictures, "digest_of", lambda pixels: hashed.append(pixels) or digest_of(pixels)
    )
    monkeypatch.setattr(worker_module, "pixels", lambda image: np.array(image.pixels))

    @dataclass(frozen=True)
    class Reference:
        name: str
        pixels: np.ndarray

        def hex(self):
            return self.name

    references = (Reference("a", picture(0)), Reference("b", picture(1)))
    asked = replace(question(), images=references)
    worker, engine = start(model, lambda i: CALL if i == 0 else ANSWER)

    async def play():
        group = await worker.rollout(asked, n=2, step=0)
        call = first_call(group.rollouts[0], engine.chat.tokens, 2)
        await worker.fork(asked, group.rollouts[0], call, step=0)

    asyncio.run(play())
    # The question's two, and what the tool showed to one rollout. The fork is cut before that, and
    # its two continuations write no call that could be run.
    assert len(hashed) == 3
    assert [request["images"] for request in engine.requests] == [2, 2, 3, 2, 2, 2]


def test_an_evaluation_has_tools_that_training_does_not_know(model):
    worker, engine = start(model, lambda i: ANSWER if i % 2 else CALL)

    async def groups():
        return [
            await worker.rollout(question(), n=1, step=0, evaluating=evaluating)
            for evaluating in (True, False, True)
        ]

    prompts, results = [], []
    for group in asyncio.run(groups()):
        (trajectory,) = group.rollouts
        prompts.append(engine.chat.decode(trajectory.prompt_ids))
        results.append("only in evaluations" in engine.chat.decode(trajectory.response_ids))
    assert ["search" in prompt for prompt in prompts] == [True, False, True]
    assert results == [True, False, True]
    assert len(worker._tools.calls) == 1


def test_a_tool_is_out_of_service_for_some_steps_and_never_in_evaluations(model):
    def script(i):
        if i % 2:
            return ANSWER
        opened = i == 10  # the first turn of the fork
        return ZOOM.removeprefix("<tool_call>") if opened else CALL

    worker, engine = start(model, script, outages={"zoom": [[2, 3]], "search": [[1, 9]]})

    async def play():
        groups = [
            (await worker.rollout(question(), n=1, step=step)).rollouts[0] for step in range(4)
        ]
        (evaluated,) = (await worker.rollout(question(), n=1, step=1, evaluating=True)).rollouts
        forked = await worker.fork(
            question(), groups[0], first_call(groups[0], engine.chat.tokens, 1), step=2
        )
        return [*groups, evaluated, *forked.continuations]

    rollouts = asyncio.run(play())
    said = [engine.chat.decode(t.response_ids) for t in rollouts]
    refused = ["zoom is unavailable at present." in text for text in said]
    assert refused == [False, True, True, False, False, True]
    assert [t.stats.tools for t in rollouts] == [("zoom",), (), (), ("zoom",), ("zoom",), ()]
    assert len(worker._tools.calls) == 2
    # Nobody's fault: the rollout goes on and is scored.
    assert {(t.stats.tool_calls, t.stats.tool_failures) for t in rollouts} == {(1, 0)}
    assert {(t.end, t.reward) for t in rollouts} == {(EndReason.ANSWERED, 1.0)}


def test_an_infrastructure_failure_is_run_again_with_the_same_seeds(model):
    replies = [EngineFailure("hiccup"), ANSWER, ANSWER]
    worker, engine = start(model, lambda i: replies[i], concurrency=1)
    group = asyncio.run(worker.rollout(question(), n=2, step=0))
    assert group.rewards.tolist() == [1, 1]
    assert engine.requests[0]["seed"] == engine.requests[1]["seed"] != engine.requests[2]["seed"]


def test_after_all_retries_there_is_no_reward(model):
    worker, engine = start(model, lambda i: EngineFailure("dead"), retries=2)
    group = asyncio.run(worker.rollout(question(), n=2, step=0))
    assert [(t.end, t.reward) for t in group.rollouts] == [(EndReason.ENGINE_FAILURE, None)] * 2
    assert len(engine.requests) == 2 * 3


@pytest.mark.parametrize(
    ("verify", "fault"),
    [
        (lambda question, answer: {}["key"], "KeyError: 'key'"),
        (lambda question, answer: float("nan"), "gave nan"),
        (lambda question, answer: None, "TypeError: float() argument must be"),
        (lambda question, answer: sys.exit(3), "RuntimeError: SystemExit: 3"),
        (lambda question, answer: threading.Event().wait(30), "TimeoutError: "),
    ],
)
def test_a_verifier_that_fails_gives_no_reward(model, verify, fault):
    worker, _ = start(model, lambda i: ANSWER, verify=verify, verify_s=0.05)
    (trajectory, _) = asyncio.run(worker.rollout(question(), n=2, step=0)).rollouts
    assert trajectory.end is EndReason.VERIFIER_FAILURE
    assert (trajectory.reward, trajectory.answer) == (None, "7")
    assert trajectory.stats.fault.startswith(fault.strip())


def test_a_verifier_is_asked_again(model):
    asked = []

    def verify(question, answer):
        asked.append(answer)
        if len(asked) == 1:
            raise ConnectionError("the judge is away")
        return 0.5

    worker, engine = start(model, lambda i: ANSWER, verify=verify)
    group = asyncio.run(worker.rollout(question(), n=1, step=0))
    assert group.rewards.tolist() == [0.5]
    assert (asked, len(engine.requests)) == (["7", "7"], 1)  # the rollout was not run again


def test_an_answer_that_cannot_be_computed_is_wrong_and_keeps_nobody_waiting(model):
    pytest.importorskip("math_verify")
    math = verifiers.parse("math")
    bombs = {1: "9^{9^{9^9}}", 5: "10000000!"}
    scored = []

    def script(request):
        answer = bombs.get(request, "\\frac{14}{2}")
        return f"hm\n</think>\n\\boxed{{{answer}}}"

    def verify(question, answer):
        reward = math.reward(question, answer)
        scored.append(reward)
        return reward

    # A start of the process that compares is no part of the promise.
    assert math.reward(question(), "\\boxed{7}") == 1.0
    worker, _ = start(model, script, verify=verify, verify_s=60.0)
    started, busy = time.monotonic(), slowdown()
    group = asyncio.run(worker.rollout(question(), n=8, step=0))
    seconds = time.monotonic() - started
    assert scored == [1.0] * 6 + [0.0] * 2  # the right ones are done first
    assert sorted(group.rewards.tolist()) == [0.0] * 2 + [1.0] * 6
    assert {trajectory.end for trajectory in group.rollouts} == {EndReason.ANSWERED}
    assert seconds < 15 * max(busy, slowdown())  # 15 s on a machine that does nothing else


def slowdown() -> float:
    """Return how many times longer than alone work takes here at present."""
    wall, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.1:
        pass
    return (time.monotonic() - wall) / (time.process_time() - cpu)


def test_a_bug_is_raised(model):
    worker, _ = start(model, lambda i: IndexError("a bug"))
    with pytest.raises(IndexError):
        asyncio.run(worker.rollout(question(), n=2, step=0))


def test_a_fork_continues_its_source(model):
    replies = [
        CALL,
        ANSWER,
        '{"name": "zoom", "arguments": {}}</tool_call>',
        "clear\n</think>\n8",
        ANSWER,
    ]
    worker, engine = start(model, lambda i: replies[i], concurrency=1)
    tokens = asyncio.run(worker.ready())

    async def run():
        group = await worker.rollout(question(), n=1, step=5)
        source = group.rollouts[0]
        return source, await worker.fork(
            group.question, source, first_call(source, tokens, 2), step=5
        )

    source, resample = asyncio.run(run())
    prefix = resample.prefix_tokens
    request = engine.requests[2]
    assert (request["n"], request["images"]) == (2, 1)
    assert np.array_equal(request["ids"], [*source.prompt_ids, *source.response_ids[:prefix]])
    assert request["ids"][-1] == tokens.call_open
    assert request["seed"] == Seeds(9, 5, "q1", 0, (prefix, 0)).of_turn(0)
    later_seeds = [Seeds(9, 5, "q1", 0, (prefix, k)).of_turn(1) for k in (0, 1)]
    # The two continuations go on side by side. Whichever asks first is answered 8, which is wrong.
    asked = [request["seed"] for request in engine.requests[3:]]
    assert sorted(asked) == sorted(later_seeds)
    reward_of = dict(zip(asked, [0.0, 1.0], strict=True))
    points = [continuation.fork for continuation in resample.continuations]
    assert points == [ForkPoint(0, 0, prefix), ForkPoint(0, 1, prefix)]
    rewards = [continuation.reward for continuation in resample.continuations]
    assert rewards == [reward_of[seed] for seed in later_seeds]
    for continuation in resample.continuations:
        assert np.array_equal(continuation.response_ids[:prefix], source.response_ids[:prefix])
        assert len(turns(continuation)) == 2
        assert continuation.stats.tool_calls == 1


def test_a_prefix_whose_continuations_call_alike_is_given_up_before_a_tool_runs(model):
    worker, engine = start(
        model,
        lambda i: [CALL, ANSWER, '{"name": "zoom", "arguments": {}}</tool_call>'][i],
        concurrency=1,
    )
    tokens = asyncio.run(worker.ready())

    async def run():
        source = (await worker.rollout(question(), n=1, step=5)).rollouts[0]
        return await worker.fork(
            question(), source, first_call(source, tokens, 2, min_distinct_calls=2), 5
        )

    assert asyncio.run(run()).continuations == ()
    assert (len(engine.requests), len(worker._tools.calls)) == (3, 1)


def test_continuations_from_the_prompt_or_after_an_observation(model):
    replies = [CALL, ANSWER, ANSWER, "clear\n</think>\n8"]
    worker, engine = start(model, lambda i: replies[i], concurrency=1)

    async def run():
        source = (await worker.rollout(question(), n=1, step=5)).rollouts[0]
        observed = turns(source)[1][0]
        return (
            source,
            observed,
            *[
                await worker.fork(question(), source, ForkRequest(0, cut, k=2), step=5)
                for cut in (0, observed)
            ],
        )

    source, observed, fresh, later = asyncio.run(run())
    from_prompt, from_observation = engine.requests[2:4]
    assert [c.reward for c in (*fresh.continuations, *later.continuations)] == [1, 1, 0, 0]
    assert from_prompt["ids"].tolist() == source.prompt_ids.tolist()
    assert from_prompt["seed"] == Seeds(9, 5, "q1", 0, (0, 0)).of_turn(0)
    assert from_prompt["seed"] != engine.requests[0]["seed"]  # no copy of its source
    kept = [*source.prompt_ids, *source.response_ids[:observed]]
    assert from_observation["ids"].tolist() == kept
    assert from_observation["images"] == 2
    assert from_observation["seed"] == Seeds(9, 5, "q1", 0, (observed, 0)).of_turn(1)
    assert [len(turns(c)) for c in (fresh.continuations[0], later.continuations[0])] == [1, 2]


def test_a_fork_tells_tools_the_calls_of_its_prefix_and_no_others(model):
    def box(n):
        return f'{{"name": "zoom", "arguments": {{"box": [{n}]}}}}</tool_call>'

    # The source zooms at 1, 2 and 3. Forked at its second call, the continuation zooms at 4 and
    # then at 5.
    replies = [
        *(f"look\n</think>\n<tool_call>{box(n)}" for n in (1, 2, 3)),
        ANSWER,
        box(4),
        f"</think><tool_call>{box(5)}",
        ANSWER,
        ANSWER,
    ]
    worker, _ = start(model, lambda i: replies[i], concurrency=1, max_turns=4)
    tokens = asyncio.run(worker.ready())

    async def run():
        source = (await worker.rollout(question(), n=1, step=0)).rollouts[0]
        second_call = tool_call_spans(source, tokens)[1][0] + 1
        await worker.fork(question(), source, ForkRequest(0, second_call, k=1), step=0)

    asyncio.run(run())
    # Each with the number of images then: the question's, and one more with every zoom.
    called = [("zoom", {"box": [1]}, 1), ("zoom", {"box": [2]}, 2), ("zoom", {"box": [4]}, 2)]
    assert worker._tools.earlier[:3] == [[], called[:1], called[:2]]
    assert worker._tools.earlier[3:] == [called[:1], [called[0], called[2]]]


def test_a_fork_whose_engine_fails_has_no_rewards(model):
    replies = [CALL, ANSWER, EngineFailure("dead"), EngineFailure("dead")]
    worker, _ = start(model, lambda i: replies[i])
    tokens = asyncio.run(worker.ready())

    async def run():
        source = (await worker.rollout(question(), n=1, step=0)).rollouts[0]
        return await worker.fork(question(), source, first_call(source, tokens, 2), step=0)

    assert [(c.end, c.reward) for c in asyncio.run(run()).continuations] == [
        (EndReason.ENGINE_FAILURE, None)
    ] * 2


def in_the_store(trajectory):
    """Return a trajectory as the driver has it: with references instead of pixels."""
    return with_images(
        trajectory, lambda image: StoredImage(digest_of(image), *image_size(image), 0, "object")
    )


@pytest.mark.parametrize("lost", [False, True])
def test_a_fork_fetches_the_images_of_its_prefix_once(model, monkeypatch, lost):
    fetched = []

    def fetch(images):
        fetched.append(len(images))
        if lost:
            raise ImagesLost("images of tools are lost: ObjectLostError")
        return [picture(1) for _ in images]

    # The prefix ends after the first call's result, and both continuations call again.
    replies = [CALL, ANSWER, CALL, ANSWER, ANSWER]
    worker, engine = start(model, lambda i: replies[i])

    async def run():
        source = in_the_store((await worker.rollout(question(), n=1, step=0)).rollouts[0])
        monkeypatch.setattr("rollout_workers.pictures.fetched", fetch)
        cut = sum(len(segment.token_ids) for segment in source.segments[:2])
        request = ForkRequest(0, cut, k=2)
        return source, await worker.fork(question(), source, request, step=0)

    source, resample = asyncio.run(run())
    if lost:
        ends = [(made.end, made.reward) for made in resample.continuations]
        assert ends == [(EndReason.ENGINE_FAILURE, None)] * 2
        return
    # Once the prefix's, then what the tool showed to each continuation.
    assert fetched == [1, 1, 1]
    assert [request["images"] for request in engine.requests[2:]] == [2, 3, 3]
    assert [call[2] for call in worker._tools.calls] == [1, 2, 2]
    for made in resample.continuations:
        assert made.images[0] is source.images[0]
        assert isinstance(made.images[1], np.ndarray)


def test_many_rollouts_are_in_flight_and_no_more_than_configured(model):
    running, most = 0, 0

    async def counting(*args, **options):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await generate(*args, **options)

    worker, engine = start(model, lambda i: ANSWER, concurrency=3)
    generate, engine.generate = engine.generate, counting
    asyncio.run(worker.rollout(question(), n=8, step=0))
    assert most == 3
