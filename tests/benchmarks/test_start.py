"""How the start of a run is timed, without a run."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from axpo.record.ledger import Ledger
from benchmarks.bench_start import HERE, Code, _first_question


@pytest.fixture
def process():
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield sleeping
    sleeping.kill()
    sleeping.wait()


def test_the_first_question_is_the_first_one_dispatched(tmp_path, process):
    log = Ledger(tmp_path / "rollouts.jsonl")
    log.log("started", step=0)
    before = time.time()
    log.log("dispatched", question="a")
    time.sleep(0.05)
    log.log("dispatched", question="b")
    asked = _first_question(tmp_path / "rollouts.jsonl", process, time.time() + 10)
    assert asked == pytest.approx(before, abs=0.04)


def test_a_run_that_ended_or_asks_nothing_is_no_start(tmp_path, process):
    with pytest.raises(TimeoutError, match="no question within"):
        _first_question(tmp_path / "none.jsonl", process, time.time() + 0.3)
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="the run ended with code -9"):
        _first_question(tmp_path / "none.jsonl", process, time.time() + 10)


def test_the_code_that_runs_is_the_one_that_is_asked_for(tmp_path):
    Code(HERE, tmp_path).check()
    with pytest.raises(RuntimeError, match="its processes would import"):
        Code(tmp_path, tmp_path).check()
