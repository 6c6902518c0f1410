"""Servers of MCP that mean harm: their schemas, their answers, and what is logged of them."""

import base64
import io
import json
import logging
import sys
import time
import traceback

import pytest
from PIL import Image

from tests.tool_server.test_mcp import session
from tool_server import mcp_log
from tool_server.schemas import checker
from tool_server.tool import ToolError, ToolStatus, ToolUnavailable


def doubling(times: int) -> dict:
    """Return a schema of a few lines that is checked 2**times times."""
    definitions: dict = {"a0": {"type": "object"}}
    for i in range(1, times + 1):
        twice = [{"$ref": f"#/$defs/a{i - 1}"}] * 2
        definitions[f"a{i}"] = {"allOf": twice}
    return {"type": "object", "allOf": [{"$ref": f"#/$defs/a{times}"}], "$defs": definitions}


def nested(times: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(times):
        schema = {"allOf": [schema]}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "thing"}, "its schema is no JSON schema: 'thing'"),
        (doubling(27), "its schema takes too long to check"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, "its schema takes too long to check"),
        (nested(50), "its schema has more than 40 objects and lists"),
        ({"type": "object", "description": "x" * 40_000}, "at most 32,768 fit"),
        (
            {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/s"}}},
            "it refers to 'http://127.0.0.1:9/s', which is not in it",
        ),
        ({"type": "object", "allOf": [{"$ref": "#/$defs/b"}]}, "it refers to '#/\\$defs/b'"),
    ],
)
def test_a_schema_that_cannot_be_used_ends_the_start(schema, message):
    with pytest.raises(ToolUnavailable, match=message):
        checker(schema)


ENDLESS = {"a": "a" * 40 + "b"}


@pytest.mark.parametrize(
    ("properties", "arguments"),
    [
        ({"a": {"pattern": "^(a+)+$"}}, ENDLESS),
        ({"a": {"propertyNames": {"pattern": "^(a+)+$"}}}, {"a": {"a" * 40 + "b": 1}}),
    ],
)
def test_arguments_cannot_keep_a_check_busy(properties, arguments):
    check = checker({"type": "object", "properties": properties})
    with pytest.raises(ToolError, match="the arguments take too long to check"):
        check(arguments)
    assert check({"a": {}}) == {"a": {}}


def test_arguments_are_checked_against_the_schema():
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "name": {"type": "string"}}}
    check = checker(tree | {"required": ["name"]})
    assert check({"name": "a", "left": {"name": "b"}})
    for arguments, message in (
        ({"name": 1}, "name: 1 is not of type 'string'"),
        ({"name": "a", "left": {}}, "left: 'name' is a required property"),
        ([], "arguments must be an object"),
        ({"name": nested(50)}, "more than 40 objects and lists"),
    ):
        with pytest.raises(ToolError, match=message):
            check(arguments)
    patterned = checker({"type": "object", "properties": {"a": {"pattern": "^b"}}})
    with pytest.raises(ToolError, match="a: 'c' does not match"):
        patterned({"a": "c"})


HOSTILE = """
import json, os, sys
tools, content = [json.loads(os.path.expandvars(given)) for given in sys.argv[1:]]
for _ in range(int(os.environ.get("NOISE", "0"))):
    print("no JSON but the key", os.environ["SEARCH_KEY"], chr(27) + "[2J", flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    version = message.get("params", {}).get("protocolVersion")
    server = {"name": "h", "version": "1"}
    capabilities = {"tools": {}}
    result = {
        "initialize": dict(protocolVersion=version, capabilities=capabilities, serverInfo=server),
        "tools/list": {"tools": tools},
        "tools/call": {"content": content},
    }.get(message["method"], {})
    answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result})
    # What Python cannot print: a byte that is no text.
    sys.stdout.buffer.write(answer.encode().replace(b"BYTE", b"\\xff") + b"\\n")
    sys.stdout.buffer.flush()
"""


def hostile(tools: list, content: list) -> dict:
    command = [sys.executable, "-c", HOSTILE, json.dumps(tools), json.dumps(content)]
    return {"command": command, "retries": 0, "deadline_s": 30}


def offered(description: str = "d", **more) -> dict:
    return {"name": "t", "description": description, "inputSchema": {"type": "object"}} | more


def test_a_description_is_limited_and_plain():
    schemas, _ = session(hostile([offered("two\nlines \ufffe <|im_end|>")], []), ("t", {}))
    # What looks like a control token stays text when the prompt is encoded.
    assert schemas[0]["function"]["description"] == "two lines \ufffe <|im_end|>"
    with pytest.raises(ToolUnavailable, match="'t': its description has 10,000 characters"):
        session(hostile([offered("d" * 10_000)], []))


def test_a_list_of_tools_that_is_none_ends_the_start_in_one_line():
    with pytest.raises(ToolUnavailable, match="validation error") as error:
        session(hostile([{"name": "t", "inputSchema": {"type": "array"}}], []))
    assert "\n" not in str(error.value).split("): ")[-1]


def picture(side: int) -> dict:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return {
        "type": "image",
        "data": base64.b64encode(file.getvalue()).decode(),
        "mimeType": "image/png",
    }


def test_images_of_an_answer_are_limited_before_they_are_decoded():
    entry = hostile([offered()], [picture(30)] * 5 + [{"type": "text", "text": "end"}])
    _, result = session(entry | {"max_images": 3}, ("t", {}))
    assert len(result.images) == 3
    assert result.text == "end\n[2 more images left out]"
    # 16 million pixels each, 32 million in all.
    _, result = session(hostile([offered()], [picture(3999)] * 3), ("t", {}))
    assert len(result.images) == 2
    assert result.text == "[an image left out: an answer has at most 32,000,000 pixels in all]"


def test_a_key_that_a_server_repeats_is_hidden(monkeypatch):
    monkeypatch.setenv("SEARCH_KEY", "sk-12345678")
    said = "your key is SK-12345678"
    entry = hostile([offered(said)], [{"type": "text", "text": said}]) | {"env": ["SEARCH_KEY"]}
    schemas, result = session(entry, ("t", {}))
    assert schemas[0]["function"]["description"] == "your key is [secret]"
    assert result.text == "your key is [secret]"


def test_what_is_no_json_is_logged_a_few_times_and_never_repeated(monkeypatch, caplog):
    monkeypatch.setenv("SEARCH_KEY", "sk-12345678")
    monkeypatch.setenv("NOISE", "500")
    entry = hostile([offered()], [{"type": "text", "text": "fine"}])
    with caplog.at_level(logging.DEBUG):
        _, result = session(entry | {"env": ["SEARCH_KEY", "NOISE"]}, ("t", {}))
    assert result.text == "fine"
    lines = [line for line in caplog.text.splitlines() if "parse" in line]
    assert 1 <= len(lines) <= mcp_log.MOST
    assert all(line.endswith("from server: ValidationError") for line in lines)
    assert "sk-12345678" not in caplog.text
    assert "\x1b" not in caplog.text


def test_a_list_of_tools_that_is_none_does_not_give_the_key_away(monkeypatch, caplog):
    monkeypatch.setenv("SEARCH_KEY", "sk-12345678")
    entry = hostile([{"name": "t", "inputSchema": "$SEARCH_KEY"}], []) | {"env": ["SEARCH_KEY"]}
    with pytest.raises(ToolUnavailable, match=r"input_value='\[secret\]'") as error:
        session(entry)
    shown = "".join(traceback.format_exception(error.value)) + caplog.text
    assert "sk-12345678" not in shown


def test_a_log_holds_nothing_that_a_terminal_would_obey(caplog):
    content = [{"type": "text", "text": 5, "title": "\x1b[2J\u202e"}] * 1000
    _, result = session(hostile([offered()], content), ("t", {}))
    assert result.status is ToolStatus.INFRASTRUCTURE
    assert "tool t failed" in caplog.text
    assert len(caplog.text) < 30_000
    assert not set(caplog.text) & set("\x1b\u202e")


def test_half_a_character_of_a_server_is_text_and_no_wait():
    """Servers in JavaScript spell it so when they cut a text in the middle of a character."""
    content = [{"type": "text", "text": "half a smile: \ud83d, and a whole one: \U0001f600"}]
    started = time.monotonic()
    schemas, result = session(hostile([offered("a \udc00 in it")], content), ("t", {}))
    assert schemas[0]["function"]["description"] == "a \ufffd in it"
    assert result.status is ToolStatus.OK
    assert result.text == "half a smile: \ufffd, and a whole one: \U0001f600"
    assert time.monotonic() - started < 25  # it does not wait for its deadline of 30 s


def test_a_byte_that_is_no_text_ends_no_session():
    content = [{"type": "text", "text": "BYTE"}]
    _, *results = session(hostile([offered()], content), ("t", {}), ("t", {}))
    assert [result.text for result in results] == ["\ufffd"] * 2
