"""Comparisons of expressions: limits, who waits for whom, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from axpo.limited.client import Limited, OverLimits
from axpo.tasks import comparing, mathematics

pytest.importorskip("math_verify")

ENDLESS = "9^{9^{9^9}}"
BOMBS = [
    ENDLESS,
    "10000000!",
    "2^{2^{40}}",  # memory
    "\\prod_{n=1}^{99999999}n",
    "(" * 35 + "4" + ")" * 35,
    "\\sqrt" * 300 + "4",
    "1/" * 900 + "1",
    "\ud83d\0",
]


@pytest.fixture(scope="module")
def comparer():
    comparer = Limited("math", comparing.__file__)
    yield comparer
    comparer.close()


def compare(comparer, truths, answer):
    try:
        return comparer.ask([truths, answer])
    except OverLimits:
        return "limits"


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_equal_and_different_expressions(comparer):
    assert compare(comparer, ["\\frac{1}{2}"], "0.5") == "equal"
    assert compare(comparer, ["x^2+2x+1"], "(x+1)^2") == "equal"
    assert compare(comparer, ["3"], "4") == "different"
    assert compare(comparer, ["3", "x+1"], "1+x") == "equal"
    assert compare(comparer, ["$$"], "4") == "unreadable"


def test_no_answer_waits_for_one_that_cannot_be_compared(comparer):
    compare(comparer, ["4"], "4")
    with ThreadPoolExecutor(len(BOMBS)) as threads:
        bombs = [threads.submit(compare, comparer, ["4"], bomb) for bomb in BOMBS]
        time.sleep(0.2)
        started = time.monotonic()
        assert compare(comparer, ["4"], "4") == "equal"
        assert time.monotonic() - started < 8  # 0.02 s on an idle machine
        assert not all(bomb.done() for bomb in bombs)
        # Each is wrong, and none is a failure.
        assert {bomb.result() for bomb in bombs} <= {"limits", "different"}
        # The formula reader may meet the limit of memory itself, and then call a bomb different.
        assert bombs[0].result() == "limits"


def test_what_is_too_long_or_too_deep_is_not_even_compared(monkeypatch):
    monkeypatch.setattr(mathematics, "_comparer", None)
    for answer in ("(" * 500, "x" * 2001, "{[(" * 20):
        assert mathematics.equal("4", answer) is False
    # Brackets side by side are not deep.
    assert mathematics.within_limits("(1)" * 400)


def test_a_truth_that_no_answer_can_match_is_told():
    for truth in ("$$", "", "(" * 50, "x" * 2001, "?", "\\frac{", "x =", "3 4"):
        with pytest.raises(ValueError, match="expected a formula"):
            mathematics.check(truth)
    for truth in ("\\frac{\\sqrt{3}}{2}", "\\text{yes}", "\\infty", "12\\text{ cm}", "(1, 2]"):
        mathematics.check(truth)
    with pytest.raises(RuntimeError, match="no expression"):
        mathematics.equal("$$", "4")


def test_what_the_machine_kills_is_no_answer_and_is_asked_again(comparer):
    compare(comparer, ["4"], "4")
    with ThreadPoolExecutor(1) as thread:
        comparison = thread.submit(compare, comparer, ["4"], ENDLESS)
        wait_until(lambda: children(comparer._child.pid))
        os.kill(children(comparer._child.pid)[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the machine ended it"):
            comparison.result()
        comparison = thread.submit(compare, comparer, ["4"], ENDLESS)
        server = comparer._child
        wait_until(lambda: children(server.pid))
        server.kill()
        assert comparison.result() == "limits"  # by another server
    assert compare(comparer, ["4"], "4") == "equal"


def test_a_frozen_server_is_replaced(tmp_path):
    (tmp_path / "frozen.py").write_text("import time; time.sleep(60)")
    comparer = Limited("math", str(tmp_path / "frozen.py"), wait_s=0.3)
    with pytest.raises(TimeoutError, match=r"math: no reply for 0\.3 s"):
        comparer.ask(1)
    assert comparer._child is None


def test_no_secret_is_in_the_environment_of_what_compares(monkeypatch, comparer):
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-secret")
    comparer.close()
    compare(comparer, ["4"], "4")
    environment = Path(f"/proc/{comparer._child.pid}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"PATH=" in environment


ORPHANS = f"""
import threading, time
from pathlib import Path
from axpo.tasks import mathematics
threading.Thread(target=mathematics.equal, args=("4", {ENDLESS!r}), daemon=True).start()
while not (child := mathematics._comparer._child):
    time.sleep(0.01)
children = Path(f"/proc/{{child.pid}}/task/{{child.pid}}/children")
while not (busy := children.read_text().split()):
    time.sleep(0.01)
print(child.pid, *busy, flush=True)
time.sleep(60)
"""


def test_nothing_outlives_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_alive, pids)))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_more_comparisons_than_places_are_all_answered(comparer):
    # 10 endless ones share the 8 places of the long lane.
    with ThreadPoolExecutor(20) as threads:
        answers = ["4", ENDLESS] * 10
        replies = list(threads.map(lambda answer: compare(comparer, ["4"], answer), answers))
    assert replies == ["equal", "limits"] * 10
