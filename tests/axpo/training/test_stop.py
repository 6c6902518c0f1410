"""SIGTERM and Ctrl-C ask a run to end after its step; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from axpo.training.stop import StopRequest

PROCESS = """
import os, time
from axpo.training.stop import StopRequest

def say(text):
    os.write(1, (text + "\\n").encode())

with StopRequest(say) as stop:
    say("step")
    while not (stop.requested and {patient}):
        time.sleep(0.01)
say("checkpoint")
"""


def running(*, patient):
    """Start a process in the middle of a step; it ends by itself if it is asked once."""
    code = PROCESS.format(patient=not patient)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step\n"
    return process


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_once_ends_after_the_step_and_says_so(number, name):
    process = running(patient=False)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    expected = f"{name}: ending after this step, with a checkpoint. Once more: at once\n"
    assert sorted(said.splitlines(keepends=True)) == sorted(["checkpoint\n", expected])
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_twice_ends_at_once(number):
    process = running(patient=True)
    process.send_signal(number)
    assert "Once more" in process.stdout.readline()
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert time.monotonic() - started < 2
    assert process.stdout.read() == ""


def test_what_handled_the_signals_before_does_so_again():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest(lambda text: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.requested
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
