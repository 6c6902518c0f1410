"""One rollout that calls every kind of tool in the demo's stack. Nothing is a mock.

vLLM, tool server with sandbox and index, and ZeRO-3 are real. The embedded model knows one tool, so
the calls are written here. First the learner teaches the model to close a turn after any call, and
nothing else, and the new weights go to the engine. Then each call is handed to the worker as the
open turn of a trajectory that is to be forked there. The engine samples the rest of the turn; the
worker parses it and calls the tool server; and the engine samples the next turn from the
observation and every image seen so far. That turn makes room for the next call, and so on.

What this proves: calls and results of every tool pass through engine, parser, server, template,
image processor and learner, and the learner sees in the whole rollout the very tokens and images
that the engine saw. What it does not prove: that a policy finds such calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axpo.config import Recipe, load_recipe
from axpo.session import ray_session
from axpo.training.actors import Actors, training_actors
from learner.credit import sft_items
from rollout_workers.chat import Chat
from rollout_workers.images import fetched
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import (
    EndReason,
    Group,
    ObservationSegment,
    PolicySegment,
    Question,
    Segment,
    Trajectory,
    pixels,
    stored,
)
from tool_server.search.build import build

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
SCRIPTED = -1
"""Policy version of what no policy wrote."""

FIGURE = (
    "import matplotlib.pyplot as plt\n"
    "plt.figure(figsize=(1, 1))\nplt.plot([side])\nplt.show()\nprint(side * 2)"
)
CALLS = [
    # name, arguments, what the observation's text holds, the shapes of its images
    ("image_zoom_in", {"bbox_2d": [0, 0, 500, 500]}, "", [(128, 128, 3)]),
    # The crop is the second image.
    ("python", {"code": "side = images[1].size[0]\nside"}, "\n128\n", []),
    # With the variable of the call before.
    ("python", {"code": FIGURE}, "\n256", [(100, 100, 3)]),
    ("python", {"code": "1 / 0"}, "ZeroDivisionError", []),
    ("tavily-search", {"query": "where do puffins nest", "max_results": 2}, "https://e.org/1", []),
    ("image_search", {"query": "red square", "max_results": 1}, "a red square", [(50, 50, 3)]),
    ("darken", {"index": 0}, "image_zoom_in", [(256, 256, 3)]),  # says what was called before
    ("mcp-picture", {"side": 40}, "a square", [(40, 40, 3)]),
    ("telepathy", {}, "unknown tool 'telepathy'", []),
]
TURNS = [
    f"Next.\n</think>\n\n<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>"
    for n, a, _, _ in CALLS
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """The demo's, with every kind of tool and room for them."""
    folder: Path = tmp_path_factory.mktemp("tools")
    text = "Puffins nest in burrows on sea cliffs."
    bird = {"title": "Puffins", "text": text, "url": "https://e.org/1"}
    (folder / "birds.jsonl").write_text(json.dumps(bird) + "\n")
    (folder / "images").mkdir()
    Image.new("RGB", (50, 50), "red").save(folder / "images" / "red.png")
    caption = {"file": "red.png", "caption": "a red square"}
    (folder / "images" / "captions.jsonl").write_text(json.dumps(caption) + "\n")
    build(folder / "birds.jsonl", folder / "birds.index")
    build(folder / "images" / "captions.jsonl", folder / "images.index")
    tools = {
        "tools": {
            "image_zoom_in": {},
            "python": {"options": {"session": "rollout"}},
            "tavily-search": {
                "kind": "search",
                "options": {"provider": {"kind": "local", "index": str(folder / "birds.index")}},
            },
            "image_search": {"options": {"index": str(folder / "images.index")}},
            "darken": {"function": "tests.tool_server.user_tools:darken"},
        },
        "mcp": [
            {
                "command": [sys.executable, "tests/tool_server/mcp_server.py"],
                "tools": ["picture"],
                "prefix": "mcp-",
            }
        ],
    }
    longer = {"hf_overrides": {"text_config": {"max_position_embeddings": 4096}}}
    rollout = [
        f"max_turns={len(CALLS) + 1}",
        "max_context_tokens=4096",
        "max_turn_tokens=48",
        f"engine.options={json.dumps(longer)}",
    ]
    learner = ["ranks=1", "lr=0.001", "warmup_steps=0", "kl_beta=0", "check_sync=true"]
    settings = [
        f"tools={json.dumps(tools)}",
        *(f"rollout.{s}" for s in rollout),
        *(f"learner.{s}" for s in learner),
    ]
    return load_recipe("deploy/recipes/demo.yaml", settings)


@pytest.fixture(scope="module")
def actors(recipe: Recipe) -> Iterator[Actors]:
    with ray_session(recipe), training_actors(recipe, recipe.task.load()) as actors:
        yield actors


@pytest.fixture(scope="module")
def question(recipe: Recipe, actors: Actors) -> Question:
    return stored(recipe.task.load().train(0))


@pytest.fixture(scope="module")
def script(recipe: Recipe, actors: Actors, question: Question) -> Trajectory:
    """The calls as one text, with what the tools answer when they are asked directly."""

    async def turns() -> tuple[list, list]:
        turns, earlier, images = [], [], list(question.images)
        for (name, arguments, _, _), text in zip(CALLS, TURNS, strict=True):
            result = await actors.tools.call(name, arguments, images, earlier)
            earlier.append((name, arguments, len(images)))
            images += result.images
            turns += [text, [result]]
        return await actors.tools.schemas(), [*turns, "</think>\n\nunknown"]

    schemas, written = asyncio.run(turns())
    return Chat.load(recipe.model).trajectory(question, schemas, recipe.task.load().system, written)


@pytest.fixture(scope="module")
def closing(actors: Actors, question: Question, script: Trajectory) -> None:
    """The learner and the engine hold a policy that closes its turn after `</tool_call>`."""
    (item,) = sft_items([(question, script)])
    follows_call = script.response_ids[:-1] == actors.tokens.call_close
    after_call = np.concatenate([[False], follows_call]) & script.policy_mask
    assert after_call.sum() == len(CALLS)
    item = replace(item, mask=after_call, advantages=np.where(after_call, item.advantages, 0))
    for _ in range(12):
        for _ in range(4):
            actors.learner.fine_tune([item])
        if actors.learner.logprobs([item])[0][after_call].min() > np.log(0.9):
            break
    actors.learner.send_weights(actors.pool.workers, version=1)


@pytest.fixture(scope="module")
def rollout(
    recipe: Recipe, actors: Actors, question: Question, script: Trajectory, closing: None
) -> Trajectory:
    """Return the rollout. Its odd policy segments are written here, all else is real."""
    encode = Chat.load(recipe.model).encode_policy
    segments: tuple[Segment, ...] = ()
    for turn, text in enumerate(TURNS):
        ids = encode(text)
        call = PolicySegment(ids, np.zeros(len(ids), np.float32), SCRIPTED)
        source = Trajectory(
            question.id, 0, script.prompt_ids, (*segments, call), EndReason.OUT_OF_TOKENS
        )
        request = ForkRequest(rollout=0, prefix_tokens=len(source.response_ids), k=2)
        forking = actors.pool.fork(Group(question, (source,), 0), request, turn)
        forks = actors.pool.run(forking).result(240).continuations
        # One whose turn was closed, whose call was answered, and that went on.
        went_on = next(fork for fork in forks if len(fork.segments) > len(segments) + 2)
        segments = went_on.segments[: len(segments) + 3]
    return went_on


def test_every_tool_is_called_and_answers_as_it_does_when_asked_directly(
    recipe, question, script, rollout
):
    decode = Chat.load(recipe.model).decode
    seen = [s for s in rollout.segments if isinstance(s, ObservationSegment)][: len(CALLS)]
    direct = [s for s in script.segments if isinstance(s, ObservationSegment)]
    for (name, _, text, shapes), observed, expected in zip(CALLS, seen, direct, strict=True):
        shown = fetched(observed.images)
        assert text in decode(observed.token_ids), name
        assert [image.shape for image in shown] == shapes, name
        assert np.array_equal(observed.token_ids, expected.token_ids), name
        assert all(map(np.array_equal, shown, expected.images)), name
    image = pixels(question.images[0])
    crop, found, halved = (fetched(seen[turn].images)[0] for turn in (0, 5, 6))
    assert np.array_equal(crop, image[:128, :128])
    assert np.array_equal(found[0, 0], [255, 0, 0])
    assert np.array_equal(halved, image // 2)
    assert not rollout.end.infrastructure
    assert rollout.reward is not None


def test_the_engine_sampled_what_was_not_written_here(actors, rollout):
    by_policy = [s for s in rollout.segments if isinstance(s, PolicySegment)]
    sampled = [s for s in by_policy if s.policy_version != SCRIPTED]
    assert len(by_policy) - len(sampled) == len(CALLS)
    assert {s.policy_version for s in sampled} == {1}
    assert all(s.token_ids[-1] == actors.tokens.im_end for s in sampled[: len(CALLS)])
    assert len(sampled) > len(CALLS)  # and the turn after the last observation


def was_sampled(segment: Segment) -> np.ndarray:
    """Return the mask of a segment's tokens: did the engine sample them?"""
    sampled = isinstance(segment, PolicySegment) and segment.policy_version != SCRIPTED
    return np.full(len(segment.token_ids), sampled)


def test_the_learner_sees_the_rollout_as_the_engine_did(actors, question, rollout):
    """Log-probabilities of what was sampled, behind ten turns and six images, are equal.

    And an update takes the whole rollout.
    """
    sampled = np.concatenate([was_sampled(segment) for segment in rollout.segments])
    (item,) = sft_items([(question, rollout)])
    item = replace(item, mask=sampled, advantages=sampled.astype(np.float32))
    gap = np.abs(actors.learner.logprobs([item])[0] - rollout.logprobs)[item.mask]
    tokens = item.mask.sum()
    print(f"\n{tokens} sampled tokens, logprob gap: mean {gap.mean():.1e}, max {gap.max():.1e}")
    assert gap.max() < 1e-3
    numbers = actors.learner.update([item])
    assert numbers["skipped"] == 0
    assert numbers["logprob_gap_mean"] < 1e-3


def test_no_call_was_lost_to_infrastructure(actors):
    numbers = actors.tools.take_stats()
    assert set(numbers) == {name for name, *_ in CALLS} - {"telepathy"}
    assert all(n["calls"] == n.get("ok", 0) + n.get("tool_error", 0) for n in numbers.values())
