"""`axpo tools`, as a user runs it. The sandbox is real."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from axpo import tools_cli
from axpo.cli import app
from axpo.errors import AxpoError

PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
DEBUG = "deploy/recipes/debug.yaml"


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(tools_cli, "console", Console(width=200))


def axpo(*arguments: str) -> tuple[int, str]:
    """Return the exit code and what was printed.

    An AxpoError is printed by `axpo.cli.main`, with exit code 2.
    """
    done = CliRunner().invoke(app, ["tools", *arguments])
    if isinstance(done.exception, AxpoError):
        return 2, f"{done.output}error {done.exception}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def recipe(tmp_path):
    """Write the debug recipe with other tools."""

    def write(tools: dict) -> str:
        data = yaml.safe_load(Path(DEBUG).read_text(encoding="utf-8"))
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data | {"tools": tools}))
        return str(tmp_path / "recipe.yaml")

    return write


def test_list_shows_kinds_and_the_tools_of_a_recipe(recipe):
    code, out = axpo("list")
    assert code == 0
    # They come in the order in which their modules were first imported.
    kinds = re.findall(r"^(\w+)", out, re.M)[1:]
    assert sorted(kinds) == ["image_search", "image_zoom_in", "python", "search"]
    echo = {"function": "tests.tool_server.user_tools:echo"}
    code, out = axpo("list", recipe({"tools": {"crop": {"kind": "image_zoom_in"}, "echo": echo}}))
    assert code == 0
    assert "bbox_2d [label] [img_idx]" in " ".join(out.split())
    assert re.search(r"^echo +\[text\] +Return the text\.", out, re.M)


def test_call_saves_images(tmp_path):
    picture = np.arange(40 * 80 * 3, dtype=np.uint8).reshape(40, 80, 3)
    Image.fromarray(picture).save(tmp_path / "in.png")
    box = '{"bbox_2d": [0, 0, 500, 1000], "img_idx": 1}'
    two_images = ["--image", str(tmp_path / "in.png")] * 2
    out = ["--out", str(tmp_path / "out")]
    code, printed = axpo("call", "image_zoom_in", box, *two_images, *out)
    assert code == 0
    assert "40 x 40" in printed
    saved = Image.open(tmp_path / "out" / "image_zoom_in_0.png")
    assert np.array_equal(np.asarray(saved), picture[:, :40])


def test_call_opens_only_the_tool_that_it_calls(recipe):
    no_index = {"provider": {"kind": "local", "index": "/no"}}
    tools = {
        "say": {"function": "tests.tool_server.user_tools:echo"},
        "broken": {"kind": "search", "options": no_index},
    }
    answer = axpo("call", "say", '{"text": "[hi]"}', recipe({"tools": tools}))
    assert answer == (0, "[hi]\n")


def test_nothing_that_a_tool_says_is_obeyed_by_the_terminal(recipe):
    echo = recipe({"tools": {"say": {"function": "tests.tool_server.user_tools:echo"}}})
    bad = "\x1b]0;title\x07\x1b[2Jhidden\x9b31m\u202egnp.exe\r"
    answer = axpo("call", "say", json.dumps({"text": bad}), echo)
    assert answer == (0, "\\x1b]0;title\\x07\\x1b[2Jhidden\\x9b31m\\u202egnp.exe\\r\n")
    code, printed = axpo("call", bad, "{}", echo)
    assert code == 2
    assert "\x1b" not in printed
    assert "\u202e" not in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("call", "image_zoom_in", '{"bbox_2d": [0, 0, 9, 9], "img_idx": 3}'),
            1,
            "img_idx: there are no images",
        ),
        (("call", "image_zoom_in", '{"bbox_2d": "all"}'), 1, "bbox_2d: expected 4 numbers"),
        (("call", "image_zoom_in", "[1]"), 1, "arguments must be an object"),
        (("call", "image_zoom_in", "{bbox"), 2, "JSON: not readable: Expecting property name"),
        (
            ("call", "telepathy", "{}"),
            2,
            "'telepathy': expected one of ",
        ),
        (("call", "telepathy", "{}", DEBUG), 2, "unknown tool 'telepathy', known: image_zoom_in"),
        (("call", "search", "{}"), 2, "tools.tools.search.options.provider"),
        (
            ("call", "image_zoom_in", "{}", "--image", "/nowhere.png"),
            2,
            "--image /nowhere.png: is not there",
        ),
        (("call", "image_zoom_in", "{}", "/nowhere.yaml"), 2, "recipe /nowhere.yaml: no such file"),
        (("check", DEBUG), 2, "tools.tools has no python tool to check"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, code, message):
    got, out = axpo(*arguments)
    assert got == code
    assert message in out
    assert len(out.strip().splitlines()) <= 2


def test_python_runs_in_its_sandbox_and_leaves_nothing_behind(tmp_path):
    code = '{"code": "import os\\nprint(6 * 7, os.getpid())"}'
    command = [sys.executable, "-m", "axpo.cli", "tools", "call", "python", code]
    # A jail that outlived the command would become a child of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = children()
    try:
        done = subprocess.run(
            [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=240
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("42 ")
        assert running(children() - before) == set()
    finally:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def children() -> set[str]:
    """Return the process ids of this process's children."""
    pids: set[str] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        pids.update(file.read_text().split())
    return pids


def running(pids: set[str]) -> set[str]:
    """Return those that still run: a zombie is only an entry that waits for its parent."""
    return {pid for pid in pids if state(pid) != "Z"}


def state(pid: str) -> str:
    # The name of the program, in brackets, may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
def test_check_prints_layers_and_runs_the_attacks():
    code, out = axpo("check")
    assert re.search(r"^seccomp +present", out, re.M)
    assert re.search(r"^(\d+) of \1 attacks held$", out, re.M)
    assert code == 0
