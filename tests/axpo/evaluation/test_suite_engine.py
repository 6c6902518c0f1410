"""The paper's suite on invented rows, with the embedded model on the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.config import load_recipe
from axpo.evaluation.measure import measure
from axpo.evaluation.paper import SUITE
from axpo.evaluation.plan import SuiteTask
from axpo.evaluation.results import Results
from axpo.evaluation.suite import Options, prepare
from axpo.session import ray_session, rollout_actors
from axpo.tasks.judge import judges
from rollout_workers.chat import Chat
from tests.axpo.evaluation import invented

DEBUG = "deploy/recipes/debug.yaml"
STOP_AFTER = 5

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Stopping:
    """A pool that is interrupted after some questions."""

    def __init__(self, pool):
        self._pool = pool

    def ready(self):
        return self._pool.ready()

    def outcomes(self, *args, **options):
        for count, outcome in enumerate(self._pool.outcomes(*args, **options)):
            if count == STOP_AFTER:
                raise KeyboardInterrupt
            yield outcome


def test_the_suite_goes_on_where_it_was_interrupted_and_ends_alike(tmp_path):
    data = invented.write(tmp_path / "data")
    recipe = load_recipe(DEBUG)
    options = Options(SUITE, data, judges.parse("exact"), samples=2)
    found = prepare(Path(DEBUG), recipe, recipe.model, options)
    task = SuiteTask(found.asked)
    with (
        ray_session(recipe, learner=False),
        rollout_actors(recipe, task, recipe.model) as (pool, _),
    ):
        decode = Chat.load(recipe.model).decode

        def run(name, used, found=found):
            @contextmanager
            def engines(_):
                yield used, decode

            lines = [one.to_json() for one in found.asked]
            settings = {**found.settings, "temperature": found.plan.temperature}
            with Results(tmp_path / name, settings, lines) as results:
                rows, summary = measure(found.plan, found.asked, results, engines, print)
                results.finish(rows, summary)
            return summary

        whole = run("whole", pool)
        with pytest.raises(KeyboardInterrupt):
            run("cut", Stopping(pool))
        kept = (tmp_path / "cut" / "results.jsonl").read_text().splitlines()
        assert len(kept) == 2 * STOP_AFTER
        assert run("cut", pool) == whole
        # Greedy samples are alike, whatever their seeds are.
        greedy = replace(found, plan=replace(found.plan, temperature=0.0), asked=found.asked[:1])
        run("greedy", pool, greedy)
        first, second = (tmp_path / "greedy" / "results.jsonl").read_text().splitlines()
        assert json.loads(first)["answer"] == json.loads(second)["answer"]
    questions = {name: part["questions"] for name, part in whole["benchmarks"].items()}
    assert questions == dict(zip(SUITE, (3, 3, 2, 2, 2, 2, 2, 2, 2), strict=True))
    for name, part in whole["benchmarks"].items():
        assert part["set_aside"]["counts"] == {}, (name, part["set_aside"])
    rows = [(tmp_path / name / "results.jsonl").read_text() for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 2 * len(found.asked)


def evaluate(data: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "axpo.cli", "eval", DEBUG, "--suite", "paper", "--data", data]
    command += ["--judge", "exact", "--samples", "2", "--out", out]
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_with_the_same_command(tmp_path):
    data = invented.write(tmp_path / "data")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert evaluate(data, whole).wait(300) == 0, whole.with_suffix(".log").read_text()
    process = evaluate(data, cut)
    deadline = time.monotonic() + 300
    results = cut / "results.jsonl"
    while not (results.exists() and results.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (cut / "summary.json").exists()
    assert evaluate(data, cut).wait(300) == 0, cut.with_suffix(".log").read_text()
    first, second = (json.loads((out / "summary.json").read_text()) for out in (whole, cut))
    # The command names its folder; all else is the same to the last digit.
    assert first.pop("command") != second.pop("command")
    del first["commit"], second["commit"]
    assert first == second
    assert (whole / "results.jsonl").read_text() == (cut / "results.jsonl").read_text()
    assert (cut / "report.html").stat().st_size > 10_000
