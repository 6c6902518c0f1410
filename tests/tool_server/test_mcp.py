"""Tools of real MCP servers, over stdio and over HTTP."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer
from tool_server.tool import ToolStatus, ToolUnavailable

SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
ROOT = Path(__file__).parents[2]


def session(entry: dict, *calls: tuple[str, dict], **settings) -> list:
    """Return the schemas of a server, then the results of calls, one after the other."""
    recipe = {"tools": {}, "mcp": [entry], "start_deadline_s": 60, **settings}

    async def story() -> list:
        server = ToolServer(ToolServerConfig.model_validate(recipe))
        try:
            schemas = await server.schemas()
            results = [await server.call(name, arguments, []) for name, arguments in calls]
            return [schemas, *results]
        finally:
            await server.close()

    return asyncio.run(story())


def stdio(**settings) -> dict:
    return {"command": [sys.executable, SCRIPT], "retries": 0, "deadline_s": 30} | settings


@pytest.fixture(scope="module")
def url():
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen([sys.executable, SCRIPT, str(port)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with closing(socket.socket()) as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/mcp"
    process.kill()
    process.wait(10)


@pytest.fixture(params=["stdio", "http"])
def entry(request):
    if request.param == "stdio":
        return stdio()
    return {"url": request.getfixturevalue("url"), "retries": 0, "deadline_s": 30}


def test_tools_are_listed_checked_and_called(entry):
    schemas, good, wrong, missing, unknown, failed = session(
        entry | {"prefix": "t-"},
        ("t-add", {"a": 2, "b": 3}),
        ("t-add", {"a": "2", "b": 3}),
        ("t-add", {"a": 2}),
        ("add", {"a": 2, "b": 3}),
        ("t-fail", {}),
    )
    functions = {schema["function"]["name"]: schema["function"] for schema in schemas}
    assert list(functions) == [
        "t-add",
        "t-picture",
        "t-environment",
        "t-fail",
        "t-sleep",
        "t-exit_now",
        "t-process",
    ]
    assert functions["t-add"]["description"] == "Add two numbers."
    assert functions["t-add"]["parameters"]["required"] == ["a", "b"]
    assert (good.status, good.text) == (ToolStatus.OK, "5")
    assert (wrong.status, wrong.text) == (ToolStatus.TOOL_ERROR, "a: '2' is not of type 'integer'")
    assert (missing.status, missing.text) == (ToolStatus.TOOL_ERROR, "'b' is a required property")
    assert unknown.text.startswith("unknown tool 'add', known: t-add")
    assert failed.status == ToolStatus.TOOL_ERROR
    assert "not today" in failed.text


def test_images_come_decoded_and_under_limits(entry):
    _, good, broken, huge = session(
        entry,
        ("picture", {"side": 40}),
        ("picture", {"side": 40, "broken": True}),
        ("picture", {"side": 5000}),
    )
    assert good.text == "a square"
    assert good.images[0].shape == (40, 40, 3)
    assert np.array_equal(good.images[0][0, 0], [255, 0, 0])
    for result in (broken, huge):
        assert result.status == ToolStatus.OK
        assert result.images == ()
        assert result.text.startswith("a square\n[an image left out: ")


def test_only_the_tools_of_the_recipe_are_offered():
    schemas, result = session(stdio(tools=["fail", "add"]), ("process", {}))
    assert [schema["function"]["name"] for schema in schemas] == ["fail", "add"]
    assert result.text == "unknown tool 'process', known: fail, add"


def test_a_command_gets_the_environment_that_the_recipe_names(monkeypatch):
    monkeypatch.setenv("SEARCH_KEY", "a secret")
    monkeypatch.setenv("OTHER_KEY", "another secret")
    _, result = session(stdio(env=["SEARCH_KEY"]), ("environment", {}))
    names = result.text.split()
    assert "SEARCH_KEY" in names
    assert "OTHER_KEY" not in names
    assert set(names) <= {
        "SEARCH_KEY",
        "HOME",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TERM",
        "USER",
        "LC_CTYPE",
    }


def test_a_call_past_its_deadline_leaves_the_connection_alive():
    _, before, late, after = session(
        stdio(deadline_s=2, tools=["process", "sleep"]),
        ("process", {}),
        ("sleep", {"seconds": 60}),
        ("process", {}),
    )
    assert (late.status, late.text) == (ToolStatus.DEADLINE, "sleep ran longer than 2 s")
    assert (after.status, after.text) == (ToolStatus.OK, before.text)


def test_a_command_that_ends_is_started_again_and_ends_with_the_server():
    _, before, died, after = session(stdio(), ("process", {}), ("exit_now", {}), ("process", {}))
    assert died.status == ToolStatus.INFRASTRUCTURE
    assert after.status == ToolStatus.OK
    assert after.text != before.text
    assert not os.path.exists(f"/proc/{after.text}")


OWNER = """
import asyncio, sys
from tool_server.config import ToolServerConfig
from tool_server.server import ToolServer

async def main():
    recipe = {"tools": {}, "mcp": [{"command": sys.argv[1:]}]}
    server = ToolServer(ToolServerConfig.model_validate(recipe))
    print((await server.call("process", {}, [])).text, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_command_that_ignores_every_sign_of_its_end_does_not_outlive_a_killed_server():
    """It goes on after the end of its stdin and after SIGTERM, and has a child."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, sys.executable, SCRIPT, "stubborn"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert owner.stdout is not None
    with owner.stdout as out:
        command = psutil.Process(int(out.readline()))
    processes = psutil.Process(owner.pid).children(recursive=True)
    assert {command, *command.children()} < set(processes)
    assert len(command.children()) == 1
    owner.kill()
    owner.wait()
    assert still_running(processes, seconds=1.0) == []


def still_running(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return those that still run after so long."""
    deadline = time.monotonic() + seconds
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [process for process in processes if runs(process)]


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"command": ["/nowhere/server"]},
            r"tools\.mcp \(/nowhere/server\): no MCP server: FileNotFoundError",
        ),
        ({"command": [sys.executable, "-c", "print('hello')"]}, "no MCP server"),
        (
            {"url": "http://127.0.0.1:9/mcp"},
            r"tools\.mcp \(http://127\.0\.0\.1:9/mcp\): no MCP server",
        ),
        (
            {"command": [sys.executable, "-c", "import time; time.sleep(100)"]},
            r"no answer within 5 s|not open after 5 s",
        ),
        (stdio(tools=["add", "divide"]), "no tool divide; there are: add, picture"),
        (stdio(env=["NO_SUCH_KEY"]), "the environment variable NO_SUCH_KEY is not set"),
        (
            {"url": "http://127.0.0.1:9/mcp", "token_env": "NO_SUCH_KEY"},
            "the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_what_cannot_be_reached_ends_the_start(entry, message):
    limit = 5 if "command" in entry and "sleep" in str(entry) else 60
    with pytest.raises(ToolUnavailable, match=message) as error:
        session(entry, start_deadline_s=limit)
    assert "\n" not in str(error.value)


def test_two_servers_with_one_name_need_a_prefix():
    entries = [stdio(tools=["add"]), stdio(tools=["add"])]
    with pytest.raises(ToolUnavailable, match="there is another tool named 'add'; set a prefix"):
        session(entries[0], mcp=entries)
