"""The server as a plain object: typed results, limits, deadlines; and once as a Ray actor."""

import asyncio
import threading
import time

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from tool_server.config import ToolServerConfig
from tool_server.registry import KINDS
from tool_server.server import ToolServer, start_tool_server
from tool_server.tool import ToolKind, ToolStatus, define

IMAGE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


def server_with(monkeypatch, run, **limits) -> ToolServer:
    monkeypatch.setitem(KINDS, "probe", ToolKind(Nothing, lambda name, options: define(name, "a probe", Nothing, run)))
    return ToolServer(ToolServerConfig.model_validate({"tools": {"probe": limits}}))


def test_schema_is_qwen_s_zoom_tool():
    (schema,) = asyncio.run(ToolServer(ToolServerConfig()).schemas())
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "image_zoom_in"
    parameters = schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert list(parameters["properties"]) == ["bbox_2d", "label", "img_idx"]
    assert parameters["required"] == ["bbox_2d"]
    box = parameters["properties"]["bbox_2d"]
    assert (box["type"], box["items"], box["minItems"], box["maxItems"]) == ("array", {"type": "number"}, 4, 4)
    assert parameters["properties"]["img_idx"]["type"] == "integer"
    jsonschema.validate({"bbox_2d": [1, 2, 3, 4], "label": "a", "img_idx": 0}, parameters)


def test_good_call():
    result = asyncio.run(ToolServer(ToolServerConfig()).call("image_zoom_in", {"bbox_2d": [0, 0, 500, 1000]}, [IMAGE]))
    assert (result.status, result.text) == (ToolStatus.OK, "")
    assert np.array_equal(result.images[0], IMAGE[:, :32])
    assert 0 <= result.seconds < 5


@pytest.mark.parametrize("arguments", [{}, None, "text", {"bbox_2d": [0, 0, 0, 0]}, {"bbox_2d": {"a": [{}]}}, {"x" * 1000: 1}, {1: 2}])
def test_whatever_the_policy_writes_is_answered(arguments):
    result = asyncio.run(ToolServer(ToolServerConfig()).call("image_zoom_in", arguments, [IMAGE]))
    assert result.status == ToolStatus.TOOL_ERROR
    assert 0 < len(result.text) < 120


def test_unknown_tool():
    result = asyncio.run(ToolServer(ToolServerConfig()).call("python", {"code": "1"}, []))
    assert (result.status, result.text) == (ToolStatus.TOOL_ERROR, "unknown tool 'python', known: image_zoom_in")


def test_concurrency_is_limited_and_waiting_does_not_count(monkeypatch):
    running, most = 0, 0

    async def run(call):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.2)
        running -= 1
        return "done", ()

    async def six() -> list:
        server = server_with(monkeypatch, run, concurrency=2, deadline_s=0.4)
        return await asyncio.gather(*(server.call("probe", {}, []) for _ in range(6)))

    results = asyncio.run(six())
    assert most == 2
    assert [r.status for r in results] == [ToolStatus.OK] * 6  # the last waited 0.4 s for its slot
    assert all(r.seconds < 0.4 for r in results)


def test_deadline_frees_the_slot_of_a_function_that_hangs(monkeypatch):
    release = threading.Event()
    calls = []

    def run(call):
        calls.append(threading.current_thread())
        if len(calls) == 1:
            release.wait(10)
        return "done", ()

    async def two() -> list:
        server = server_with(monkeypatch, run, concurrency=1, deadline_s=0.2)
        results = [await server.call("probe", {}, []), await server.call("probe", {}, [])]
        release.set()
        await asyncio.to_thread(calls[0].join)
        return results

    started = time.monotonic()
    first, second = asyncio.run(two())
    assert (first.status, first.text) == (ToolStatus.DEADLINE, "probe ran longer than 0.2 s")
    assert second.status == ToolStatus.OK
    assert time.monotonic() - started < 5


def test_plain_functions_do_not_block_the_loop(monkeypatch):
    def run(call):
        time.sleep(0.2)
        return threading.current_thread().name, ()

    async def four() -> list:
        server = server_with(monkeypatch, run)
        return await asyncio.gather(*(server.call("probe", {}, []) for _ in range(4)))

    started = time.monotonic()
    assert all(r.text == "tool-probe" for r in asyncio.run(four()))
    assert time.monotonic() - started < 0.7  # one after the other: 0.8


def test_a_broken_tool_is_infrastructure(monkeypatch):
    def run(call):
        raise RuntimeError("no disk")

    result = asyncio.run(server_with(monkeypatch, run).call("probe", {}, []))
    assert (result.status, result.text) == (ToolStatus.INFRASTRUCTURE, "probe failed: RuntimeError: no disk")


def test_a_lost_image_is_infrastructure():
    async def lost():
        raise OSError("object lost")

    async def call():
        return await ToolServer(ToolServerConfig()).call("image_zoom_in", {"bbox_2d": [0, 0, 500, 500]}, [lost()])

    assert asyncio.run(call()).status == ToolStatus.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"python": {}}, "no tool named 'python'; there are: image_zoom_in"),
        ({"image_zoom_in": {"deadline_s": 0}}, "tools.image_zoom_in.deadline_s"),
        ({"image_zoom_in": {"options": {"min_size": 3}}}, "min_size"),
    ],
)
def test_bad_recipes_fail_before_anything_starts(tools, message):
    with pytest.raises(ValidationError, match=message):
        ToolServerConfig.model_validate({"tools": tools})


@pytest.mark.engine
def test_actor_takes_references():
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        server = start_tool_server(ToolServerConfig())
        reference = ray.put(IMAGE)
        calls = [server.call.remote("image_zoom_in", {"bbox_2d": [0, 0, 500, 1000], "img_idx": i}, [reference, IMAGE]) for i in (0, 1, 2)]
        first, second, third = ray.get(calls, timeout=60)
        assert np.array_equal(first.images[0], IMAGE[:, :32])
        assert np.array_equal(second.images[0], IMAGE[:, :32])
        assert third.status == ToolStatus.TOOL_ERROR
    finally:
        if ours:
            ray.shutdown()
