"""The self-test of a jail: one list of escapes, and a report that must have all of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tool_server.sandbox.attacks import attack_options
from tool_server.sandbox.inside import escapes
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import PythonOptions
from tool_server.sandbox.pool import JailPool
from tool_server.sandbox.process import Finished
from tool_server.sandbox.self_test import through
from tool_server.tool import ToolUnavailable

EXPECTED = ["a mount", "a program"]


def finished(tried: dict[str, str | None], **changes) -> Finished:
    output = json.dumps({"tried": tried}).encode()
    return replace(Finished(begun=1, status=0, cpu_s=0.1, output=output, complete=True), **changes)


def test_a_complete_report_without_an_escape_passes():
    assert through(finished({"a mount": None, "a program": None}), EXPECTED) == []


def test_an_escape_is_named_with_what_it_got():
    report = finished({"a mount": None, "a program": "true"})
    assert through(report, EXPECTED) == ["a program: true"]


@pytest.mark.parametrize(
    "report",
    [
        finished({"a mount": None}),
        finished({"a mount": None, "a program": None, "another": None}),
        finished({"a mount": None, "a program": None}, begun=0),
        finished({"a mount": None, "a program": None}, complete=False, killed="wall"),
        finished({}, output=b""),
        finished({}, output=b"Traceback"),
        finished({}, output=b"[]"),
    ],
)
def test_a_report_that_is_not_complete_proves_nothing(report):
    (fault,) = through(report, EXPECTED)
    assert fault.startswith("the self-test failed: ")
    assert ("wall" in fault) == (report.killed == "wall")


def test_the_list_has_each_escape_once_and_two_that_a_layer_may_not_hold():
    facts = {"namespaces": True, "landlock": 7}
    every = escapes.names(facts)
    assert len(every) == len(set(every)) == 27
    without = escapes.names({"namespaces": False, "landlock": 0})
    assert set(every) - set(without) == {"too much disk", "the root folder"}


def test_a_jail_that_lacks_a_layer_does_not_start():
    """Without seccomp, a call can fork, and make memory that no limit counts."""
    options = attack_options(PythonOptions())
    layers, toolbox = isolation(options)
    with pytest.raises(ToolUnavailable, match=r"does not hold: .*a new process: fork") as error:
        JailPool(options, replace(layers, seccomp=False), toolbox)
    assert "memory outside the limit" in str(error.value)
