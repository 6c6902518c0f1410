"""A user's functions as tools: schema, checks, results, and what is refused before a start."""

import asyncio
import sys

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer
from tool_server.tool import ToolStatus

HERE = "tests.tool_server.user_tools"
IMAGE = np.full((4, 6, 3), 100, np.uint8)


def serve(function: str, name: str = "mine") -> ToolServer:
    return ToolServer(
        ToolServerConfig.model_validate(
            {"tools": {name: {"function": f"{HERE}:{function}", "retries": 0}}}
        )
    )


def call(function: str, arguments, images=(), earlier=()):
    return asyncio.run(serve(function).call("mine", arguments, images, earlier))


def test_schema_comes_from_hints_and_docstring():
    (schema,) = asyncio.run(serve("convert", "to-fahrenheit").schemas())
    function = schema["function"]
    assert (function["name"], function["description"]) == (
        "to-fahrenheit",
        "Convert a temperature to Fahrenheit.",
    )
    parameters = function["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert parameters["required"] == ["degrees", "unit"]
    assert parameters["properties"]["degrees"] == {
        "type": "number",
        "description": "The temperature, in `unit`.",
    }
    assert parameters["properties"]["digits"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 6,
        "default": 1,
    }
    jsonschema.validate({"degrees": 20, "unit": "C"}, parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"degrees": 20, "unit": "F"}, parameters)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"degrees": 20, "unit": "C"}, "68.0 F"),
        ({"degrees": 0, "unit": "K", "digits": 2}, "-459.67 F"),
        ({"degrees": -1, "unit": "K"}, "degrees: below absolute zero"),
        ({"unit": "C"}, "degrees is missing"),
        ({"degrees": "20", "unit": "C"}, "degrees: Input should be a valid number"),
        ({"degrees": 20, "unit": "F"}, "unit: Input should be 'C' or 'K'"),
        (
            {"degrees": 20, "unit": "C", "digits": 7},
            "digits: Input should be less than or equal to 6",
        ),
        (
            {"degrees": 20, "unit": "C", "places": 7},
            "unknown argument 'places', known: degrees, unit, digits",
        ),
        ({"degrees": float("nan"), "unit": "C"}, "arguments are not JSON"),
        ([20, "C"], "arguments must be an object"),
    ],
)
def test_arguments_are_held_to_the_schema(arguments, text):
    result = call("convert", arguments)
    assert result.text == text
    assert result.status == (ToolStatus.OK if text.endswith(" F") else ToolStatus.TOOL_ERROR)


def test_what_is_no_string_is_written_as_json_and_plain_functions_leave_the_loop():
    counted = call("count", {"words": ["a", "b", "a"], "how": "different"})
    assert counted.text == '{"words":2,"main_thread":0}'
    assert call("echo", {"text": "hi"}).text == "hi"
    assert call("anything", {"a": {"b": [1, None]}}).text == "{'b': [1, None]}"


def test_a_function_may_ask_for_the_call_and_return_images():
    earlier = [("echo", {}, 1), ("mine", {"index": 0}, 1)]
    result = call("darken", {"index": 1}, [IMAGE, IMAGE + 100], earlier)
    assert (result.status, result.text) == (ToolStatus.OK, "after ['echo', 'mine']")
    assert np.array_equal(result.images[0], np.full((4, 6, 3), 100))
    (schema,) = asyncio.run(serve("darken").schemas())
    assert list(schema["function"]["parameters"]["properties"]) == ["index"]


def test_what_the_function_gets_wrong_is_infrastructure():
    assert call("darken", {"index": 7}).status == ToolStatus.INFRASTRUCTURE
    result = call("floating", {})
    assert result.status == ToolStatus.INFRASTRUCTURE
    assert "an image is a uint8 array [h, w, 3], this is float64 [2, 2, 3]" in result.text


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "nowhere.module:f",
            "cannot import nowhere.module: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (f"{HERE}:missing", f"{HERE} has no missing"),
        (f"{HERE}:constant", f"{HERE}:constant is no function"),
        (f"{HERE}", "expected package.module:name"),
        (f"{HERE}:untyped", "parameter 'a' has no type hint"),
        (f"{HERE}:undocumented", "needs a docstring"),
        (f"{HERE}:variadic", "parameter 'words': only named parameters"),
        (f"{HERE}:unresolved", "a type hint cannot be resolved: name 'Missing' is not defined"),
        (
            f"{HERE}:array",
            "its type hints give no JSON schema: "
            "Unable to generate pydantic-core schema for <class 'numpy.ndarray'>",
        ),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_the_recipe(function, message):
    with pytest.raises(ValidationError) as error:
        ToolServerConfig.model_validate({"tools": {"mine": {"function": function}}})
    (fault,) = error.value.errors()
    assert fault["msg"].startswith(
        f"Value error, tools.tools.mine.function={function!r}: {message}"
    )
    assert "\n" not in fault["msg"]


def test_functions_are_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_shouting_tools.py").write_text(
        'def shout(text: str) -> str:\n    """Shout."""\n    return text.upper()\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    config = ToolServerConfig.model_validate(
        {"tools": {"shout": {"function": "my_shouting_tools:shout"}}}
    )
    assert asyncio.run(ToolServer(config).call("shout", {"text": "a"}, [])).text == "A"


@pytest.mark.parametrize(
    ("form", "status", "text"),
    [
        ("text", ToolStatus.OK, "half a smile: \ufffd"),
        # As JSON the half can be spelled.
        ("list", ToolStatus.OK, '["half a smile: \\ud83d"]'),
        ("object", ToolStatus.OK, '{"page": "half a smile: \\ud83d"}'),
        ("error", ToolStatus.TOOL_ERROR, "half a smile: \ufffd"),
        ("failure", ToolStatus.INFRASTRUCTURE, "mine failed: OSError: half a smile: \ufffd"),
    ],
)
def test_half_a_surrogate_pair_of_a_function_is_read_by_any_tokenizer(form, status, text):
    result = call("page", {"form": form})
    assert (result.status, result.text) == (status, text)
    result.text.encode()


@pytest.mark.parametrize(
    "arguments", [{"text": "a\ud83d"}, {"a\udc00": 1}, {"text": [{"b": "\ud83d"}]}]
)
def test_half_a_surrogate_pair_of_a_policy_is_the_policys_to_read(arguments):
    result = call("echo", arguments)
    assert result.status is ToolStatus.TOOL_ERROR
    assert result.text.startswith("arguments: half a surrogate pair")
    assert call("echo", {"text": "\U0001f600"}).text == "\U0001f600"


@pytest.mark.parametrize("how", ["exit", "panic", "interrupt", "cancelled", "iteration"])
@pytest.mark.parametrize("name", ["ends", "ends_later"])
def test_what_is_no_ordinary_error_ends_the_call_alone(name, how):
    """`sys.exit` in a library would end the event loop, and with it every tool of the server."""

    async def both():
        server = serve(name)
        return [await server.call("mine", {"how": told}, []) for told in (how, "not")]

    ended, after = asyncio.run(both())
    assert ended.status is ToolStatus.INFRASTRUCTURE
    assert "failed: RuntimeError: " in ended.text
    assert (after.status, after.text) == (ToolStatus.OK, "goes on")


def test_a_check_of_arguments_that_exits_ends_the_call_alone():
    result = call("exits_when_checked", {"how": "exit"})
    assert result.status is ToolStatus.INFRASTRUCTURE
    assert result.text == "mine failed: RuntimeError: SystemExit: 3"
