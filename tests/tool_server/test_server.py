"""The server as a plain object: recipes, opening and closing, what the policy is told."""

import asyncio
import pickle
import threading
import time
import tracemalloc
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from tool_server.arguments import MAX_SIZE, define
from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer
from tool_server.tool import (
    ToolKind,
    ToolStatus,
    ToolUnavailable,
    nothing_to_free,
    tool_kinds,
)

IMAGE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)

HERE = "tests.tool_server.user_tools"


def config(*functions: str, **settings) -> ToolServerConfig:
    tools = {name: {"function": f"{HERE}:{name}"} for name in functions}
    tools |= settings.pop("tools", {})
    return ToolServerConfig.model_validate({"tools": tools, **settings})


def test_schema_is_qwen_s_zoom_tool():
    (schema,) = asyncio.run(ToolServer(ToolServerConfig()).schemas())
    assert schema["type"] == "function"
    assert schema["function"]["name"] == "image_zoom_in"
    parameters = schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert list(parameters["properties"]) == ["bbox_2d", "label", "img_idx"]
    assert parameters["required"] == ["bbox_2d"]
    box = parameters["properties"]["bbox_2d"]
    assert (box["type"], box["items"]) == ("array", {"type": "number"})
    assert (box["minItems"], box["maxItems"]) == (4, 4)
    assert parameters["properties"]["img_idx"]["type"] == "integer"
    jsonschema.validate({"bbox_2d": [1, 2, 3, 4], "label": "a", "img_idx": 0}, parameters)


def test_good_call():
    result = asyncio.run(
        ToolServer(ToolServerConfig()).call(
            "image_zoom_in", {"bbox_2d": [0, 0, 500, 1000]}, [IMAGE]
        )
    )
    assert (result.status, result.text, result.tool) == (ToolStatus.OK, "", "image_zoom_in")
    assert np.array_equal(result.images[0], IMAGE[:, :32])
    assert 0 <= result.seconds < 5


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        None,
        "text",
        {"bbox_2d": [0, 0, 0, 0]},
        {"bbox_2d": {"a": [{}]}},
        {"x" * 1000: 1},
        {1: 2},
    ],
)
def test_whatever_the_policy_writes_is_answered(arguments):
    result = asyncio.run(ToolServer(ToolServerConfig()).call("image_zoom_in", arguments, [IMAGE]))
    assert result.status == ToolStatus.TOOL_ERROR
    assert 0 < len(result.text) < 120


def test_unknown_tool():
    result = asyncio.run(ToolServer(ToolServerConfig()).call("python", {"code": "1"}, []))
    assert (result.status, result.tool) == (ToolStatus.TOOL_ERROR, "")
    assert result.text == "unknown tool 'python', known: image_zoom_in"


def test_arguments_of_100_mb_are_refused_without_a_look_at_them():
    text = "x" * 100_000_000
    server = ToolServer(config("echo"))

    async def answers() -> list:
        written = [
            {"text": text},
            {"text": [text]},
            {text: 1},
            {"a": list(range(MAX_SIZE + 1))},
            {"a": 1 << (8 * 10**8)},
            [[["x" * 70_000]] * 2],
        ]
        await server.schemas()
        tracemalloc.start()
        started = time.monotonic()
        results = [await server.call("echo", arguments, []) for arguments in written]
        assert time.monotonic() - started < 20  # measured: 0.1 s
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        return [*results, await server.call("echo", {"text": "x" * (MAX_SIZE - 10)}, [])]

    *refused, good = asyncio.run(answers())
    assert [r.status for r in refused] == [ToolStatus.TOOL_ERROR] * 6
    assert {r.text for r in refused} == {
        f"arguments are too large, at most {MAX_SIZE} characters are allowed"
    }
    assert good.status == ToolStatus.OK


def test_a_lost_image_is_infrastructure():
    async def lost():
        raise OSError("object lost")

    async def call():
        return await ToolServer(ToolServerConfig()).call(
            "image_zoom_in", {"bbox_2d": [0, 0, 500, 500]}, [lost()]
        )

    assert asyncio.run(call()).status == ToolStatus.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tools": {"pyton": {}}},
            "tools.tools.pyton: 'pyton': expected one of ",
        ),
        (
            {"tools": {"web": {"kind": "internet"}}},
            "tools.tools.web.kind: 'internet': expected one of ",
        ),
        (
            {"tools": {"image_zoom_in": {"options": {"min_size": 3}}}},
            "tools.tools.image_zoom_in.options.min_size: unknown key",
        ),
        (
            {"tools": {"image_zoom_in": {"options": {"min_side": 0}}}},
            "tools.tools.image_zoom_in.options.min_side: Input should be greater",
        ),
        (
            {"tools": {"a b": {"kind": "image_zoom_in"}}},
            "tools.tools.a b: a name is 1 to 64 characters of [A-Za-z0-9_.-]",
        ),
        (
            {"tools": {"image_zoom_in": {"pure": True}}},
            "tools.tools.image_zoom_in.pure: only of a function",
        ),
        (
            {"tools": {"f": {"function": "a:b", "kind": "image_zoom_in"}}},
            "tools.tools.f: function goes with neither kind nor options",
        ),
        ({"mcp": [{}]}, "tools.mcp: give each server a command or a url"),
        (
            {"mcp": [{"command": ["a"], "url": "http://b"}]},
            "tools.mcp: give each server a command or a url",
        ),
        ({"mcp": [{"url": "http://b", "env": ["KEY"]}]}, "tools.mcp: env belongs to a command"),
    ],
)
def test_bad_recipes_fail_before_anything_starts(settings, message):
    with pytest.raises(ValidationError) as error:
        ToolServerConfig.model_validate(settings)
    (fault,) = error.value.errors()
    assert fault["msg"].removeprefix("Value error, ").startswith(message)


def test_a_limit_out_of_range_names_its_field():
    with pytest.raises(ValidationError) as error:
        ToolServerConfig.model_validate({"tools": {"image_zoom_in": {"deadline_s": 0}}})
    assert error.value.errors()[0]["loc"] == ("tools", "image_zoom_in", "deadline_s")


def test_a_tool_may_have_any_name():
    server = ToolServer(config(tools={"crop-image": {"kind": "image_zoom_in"}}))
    assert asyncio.run(server.schemas())[0]["function"]["name"] == "crop-image"
    result = asyncio.run(server.call("crop-image", {"bbox_2d": [0, 0, 500, 1000]}, [IMAGE]))
    assert result.status == ToolStatus.OK


def test_a_kind_of_the_user_s_is_found_by_its_path():
    entry = {"kind": f"{HERE}:Shout", "options": {"mark": "?"}}
    server = ToolServer(config(tools={"shout": entry}))
    (schema,) = asyncio.run(server.schemas())
    assert schema["function"]["description"] == "Say it loudly."
    assert asyncio.run(server.call("shout", {"text": "so"}, [])).text == "SO?"


def test_a_function_of_the_name_stands_for_a_kind():
    server = ToolServer(config(tools={"shout": {"kind": f"{HERE}:open_shout"}}))
    assert asyncio.run(server.call("shout", {"text": "so"}, [])).text == "SO!"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": f"{HERE}:Missing"}, f"kind: '{HERE}:Missing': {HERE} has no Missing"),
        ({"kind": f"{HERE}:Unit"}, f"kind: '{HERE}:Unit': expected a function of (name) or a"),
        ({"kind": f"{HERE}:convert"}, f"kind: '{HERE}:convert': expected a function of (name)"),
        ({"kind": f"{HERE}:Shout", "options": {"volume": 1}}, "options.volume: unknown key"),
        (
            {"kind": f"{HERE}:Shout", "options": {"mark": "!!"}},
            "options.mark: String should have at most 1 character",
        ),
    ],
)
def test_a_kind_of_the_user_s_that_cannot_be_is_named(entry, message):
    with pytest.raises(ValidationError) as error:
        config(tools={"shout": entry})
    (fault,) = error.value.errors()
    assert fault["msg"].startswith(f"Value error, tools.tools.shout.{message}")
    assert "\n" not in fault["msg"]


def test_a_function_that_opens_no_tool_is_named():
    server = ToolServer(config(tools={"anything": {"kind": f"{HERE}:anything"}}))
    with pytest.raises(ToolUnavailable) as error:
        asyncio.run(server.schemas())
    assert str(error.value) == (
        f"tools.tools.anything: TypeError: {HERE}:anything returns str, which is no Tool"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("image_zoom_in", {"min_side": 3}),
        ("python", {"session": "rollout", "allow_missing": ["landlock"]}),
        ("search", {"provider": {"kind": "local", "index": "a"}, "max_chars": 500}),
        ("search", {"provider": {"kind": "tavily", "include_domains": ["a.example"]}}),
        ("image_search", {"index": "a", "limits": {"formats": ["PNG"]}}),
    ],
)
def test_kinds_reach_other_processes_as_they_are(name, options):
    kind = tool_kinds.parse({"kind": name, **options})
    assert pickle.loads(pickle.dumps(kind)) == kind


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


def opens(own_kinds, start_deadline_s=30.0, **openers) -> ToolServer:
    for name, opener in openers.items():
        own_kinds.register(name)(opener)
    recipe = {"tools": {name: {} for name in openers}, "start_deadline_s": start_deadline_s}
    return ToolServer(ToolServerConfig.model_validate(recipe))


def done(call):
    return "done", ()


def probe(name, run=done, close=nothing_to_free):
    return replace(define(name, "a probe", Nothing, run), close=close)


def tool(closed, together=None, fault=None):
    def opener(name):
        if together:
            together.wait(10)
        if fault:
            raise fault
        return probe(name, close=lambda: closed.append(name))

    return opener


def test_tools_open_side_by_side_and_close_once(own_kinds):
    closed = []
    together = threading.Barrier(3)  # one after the other, the first would wait in vain

    async def story() -> list:
        server = opens(own_kinds, **{name: tool(closed, together) for name in "abc"})
        names = [s["function"]["name"] for s in await server.schemas()]
        await asyncio.gather(server.close(), server.close())
        with pytest.raises(ToolUnavailable, match="the tool server is closed"):
            await server.call("a", {}, [])
        return names

    assert asyncio.run(story()) == ["a", "b", "c"]
    assert sorted(closed) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            ToolUnavailable("no bwrap: install bubblewrap"),
            "tools.tools.bad: no bwrap: install bubblewrap",
        ),
        (OSError("disk"), "tools.tools.bad: OSError: disk"),
    ],
)
def test_a_tool_that_cannot_open_is_named_and_the_others_are_closed(own_kinds, fault, message):
    closed = []
    server = opens(own_kinds, good=tool(closed), bad=tool(closed, fault=fault))
    with pytest.raises(ToolUnavailable) as error:
        asyncio.run(server.schemas())
    assert (str(error.value), closed) == (message, ["good"])


def test_a_tool_that_opens_too_late_is_closed_when_it_does(own_kinds):
    closed, late = [], threading.Event()

    def opener(name):
        def close():
            closed.append(name)
            late.set()

        time.sleep(1.3)
        return probe(name, close=close)

    with pytest.raises(ToolUnavailable, match=r"tools\.tools\.slow: not open after 1 s"):
        asyncio.run(opens(own_kinds, 1, slow=opener).schemas())
    assert late.wait(5)
    assert closed == ["slow"]


def test_what_failed_to_open_is_tried_again(own_kinds):
    faults = [ToolUnavailable("not yet")]

    def opener(name):
        if faults:
            raise faults.pop()
        return probe(name)

    async def twice():
        server = opens(own_kinds, probe=opener)
        with pytest.raises(ToolUnavailable):
            await server.call("probe", {}, [])
        return await server.call("probe", {}, [])

    assert asyncio.run(twice()).status == ToolStatus.OK


def test_limits_that_suit_a_kind_give_way_to_the_recipe(own_kinds):
    def slow(call):
        time.sleep(0.2)
        return done(call)

    @own_kinds.register("probe")
    class Probe(ToolKind):
        def open(self, name):
            return probe(name, slow)

        def default_limits(self):
            return {"deadline_s": 0.05}

    for entry, status in (({}, ToolStatus.DEADLINE), ({"deadline_s": 5}, ToolStatus.OK)):
        server = ToolServer(ToolServerConfig.model_validate({"tools": {"probe": entry}}))
        assert asyncio.run(server.call("probe", {}, [])).status == status
