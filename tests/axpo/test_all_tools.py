"""One rollout that calls every tool: the loop of a worker, the tool server as a Ray actor, sandbox, index and functions are real."""

import asyncio
import json

import numpy as np
import pytest
import ray
from PIL import Image

from rollout_workers.chat import Chat
from rollout_workers.config import RolloutConfig
from rollout_workers.trajectory import EndReason, ObservationSegment
from rollout_workers.worker import RolloutWorker
from tests.rollout_workers.helpers import MockEngine, picture, question
from tool_server.config import ToolServerConfig
from tool_server.pool import start_tool_servers
from tool_server.search.index import build

MODEL = "axpo/models/qwen3-vl-tiny"

CALLS = [
    ("image_zoom_in", {"bbox_2d": [0, 0, 500, 500]}),
    ("python", {"code": "side = images[1].size[0]\nside"}),
    ("python", {"code": "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))\nplt.plot([side])\nplt.show()\nprint(side * 2)"}),
    ("python", {"code": "1 / 0"}),
    ("tavily-search", {"query": "where do puffins nest", "max_results": 2}),
    ("image_search", {"query": "red square", "max_results": 1}),
    ("darken", {"index": 0}),
    ("telepathy", {}),
]


@pytest.fixture
def pool(tmp_path):
    (tmp_path / "birds.jsonl").write_text(
        '{"title": "Puffins", "text": "Puffins nest in burrows on sea cliffs.", "url": "https://e.org/1"}\n'
    )
    (tmp_path / "images").mkdir()
    Image.new("RGB", (50, 50), "red").save(tmp_path / "images" / "red.png")
    (tmp_path / "images" / "captions.jsonl").write_text('{"file": "red.png", "caption": "a red square"}\n')
    build(tmp_path / "birds.jsonl", tmp_path / "birds.index")
    build(tmp_path / "images" / "captions.jsonl", tmp_path / "images.index")
    config = ToolServerConfig.model_validate(
        {
            "tools": {
                "image_zoom_in": {},
                "python": {"options": {"session": "rollout"}},
                "tavily-search": {"kind": "search", "options": {"provider": {"kind": "local", "index": str(tmp_path / "birds.index")}}},
                "image_search": {"options": {"index": str(tmp_path / "images.index")}},
                "darken": {"function": "tests.tool_server.user_tools:darken"},
            }
        }
    )
    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    pool = start_tool_servers(config)
    pool.ready()
    yield pool
    pool.shutdown()
    if ours:
        ray.shutdown()


@pytest.mark.engine
def test_a_rollout_calls_every_tool(pool):
    calls = [f"</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>" for name, arguments in CALLS]
    replies = [*calls, "</think>7"]
    config = RolloutConfig(n=2, max_turns=len(replies), max_turn_tokens=512, deadline_s=120, concurrency=1)

    def factory(model, config, tokens, seed, want_entropies):
        return MockEngine(Chat.load(model), lambda i: replies[i % len(replies)])

    worker = RolloutWorker(0, MODEL, config, pool, None, lambda question, answer: float(answer == "7"), 0, engine_factory=factory)
    group = asyncio.run(worker.rollout(question(), n=2, step=0))
    numbers = pool.take_stats()

    decode = Chat.load(MODEL).decode
    for rollout in group.rollouts:
        assert (rollout.end, rollout.reward, rollout.stats.tool_calls, rollout.stats.tool_failures) == (EndReason.ANSWERED, 1.0, 8, 2)
        seen = [s for s in rollout.segments if isinstance(s, ObservationSegment)]
        texts = [decode(s.token_ids) for s in seen]
        _, first, second, failed, found, shown, darkened, unknown = texts
        assert [len(s.images) for s in seen] == [1, 0, 1, 0, 0, 1, 1, 0]
        assert np.array_equal(seen[0].images[0], picture(0)[:32, :32])
        assert "\n32\n" in first  # the crop, which is the second image
        assert "\n64" in second  # what the call before assigned
        assert "ZeroDivisionError" in failed
        assert "Puffins" in found
        assert "https://e.org/1" in found
        assert "a red square" in shown
        assert np.array_equal(seen[5].images[0][0, 0], [255, 0, 0])
        assert "image_zoom_in" in darkened
        assert np.array_equal(seen[6].images[0], picture(0) // 2)
        assert "unknown tool 'telepathy'" in unknown
    assert {name: tool["calls"] for name, tool in numbers.items()} == {
        "image_zoom_in": 2.0,
        "python": 6.0,
        "tavily-search": 2.0,
        "image_search": 2.0,
        "darken": 2.0,
    }
    assert numbers["python"]["tool_error"] == 2
