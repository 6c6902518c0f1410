"""The program as a user starts it, on the real stack: vLLM, ZeRO-3 with two ranks, Ray.

A run is killed once, resumed, evaluated and reported.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axpo.config import load_recipe
from axpo.record.ledger import balance, read
from axpo.record.meta import read_meta

DEBUG = "deploy/recipes/debug.yaml"
AXPO = [sys.executable, "-m", "axpo.cli"]

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def axpo(*arguments: str) -> str:
    done = subprocess.run([*AXPO, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def killed_after_first_checkpoint(root: Path) -> Path:
    run = root / "e2e"
    settings = [f"--set=logging.root={root}", "--set=logging.groups_kept=4", "--set=steps=3"]
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*AXPO, "train", DEBUG, "--run", "e2e", *settings],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 500
        while not (run / "checkpoints" / "step_0001").exists():
            assert process.poll() is None, (root / "log.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, (root / "log.txt").read_text()[-3000:]
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = killed_after_first_checkpoint(tmp_path_factory.mktemp("runs"))
    axpo("train", "--resume", str(folder))
    return folder


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_killed_run_goes_on_with_the_same_questions(run):
    events = [row["event"] for row in lines(run / "events.jsonl")]
    assert [event for event in events if event in ("start", "resume")] == ["start", "resume"]
    task = load_recipe(DEBUG).task.load()
    for step in (1, 2, 3):
        groups = lines(run / "trajectories" / f"step_{step:04d}.jsonl")
        asked = {group["question"]["id"] for group in groups}
        assert asked == {task.train(index).id for index in range(4 * (step - 1), 4 * step)}


def test_the_summary_holds_what_it_promises(run):
    summary = json.loads((run / "summary.json").read_text())
    rates = {
        *("pass1_start", "pass1_end", "pass4_start", "pass4_end"),
        *("tool_use_start", "tool_use_end"),
    }
    assert rates | {"steps", "seconds", "tokens"} <= set(summary)
    assert summary["steps"] == 3
    assert summary["tokens"] > 0
    assert all(0 <= summary[name] <= 1 for name in rates)


def test_every_step_reports_the_papers_diagnostics_and_engine_and_learner_agree(run):
    expected = {
        *("pass1", "tool_use_rate", "trigger_rate", "tokens_per_second"),
        *("time/rollout", "time/learn", "time/sync"),
    }
    merged: dict[int, dict] = {}
    for row in lines(run / "metrics.jsonl"):
        merged.setdefault(row["step"], {}).update(row)
    assert sorted(merged) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        row = merged[step]
        assert expected <= set(row)
        assert row["logprob_gap_mean"] < 1e-3  # float32; bans and temperature accounted for
        assert abs(row["ratio_mean"] - 1) < 1e-3  # sampled by the very policy that is updated
        assert row["skipped"] == 0
    resampled = [row for row in merged.values() if row.get("resampled_prefixes")]
    assert resampled, "no step resampled a prefix"
    assert all(row["fork_cached_share_min"] >= 0.8 for row in resampled)


def test_the_run_explains_itself(run):
    killed, resumed = read_meta(run)
    assert killed["first_step"] == 0
    assert resumed["command"][1:] == ["train", "--resume", str(run)]
    assert resumed["first_step"] >= 1
    assert len(resumed["nodes"]) == 1
    told = (run / "axpo.log").read_text()
    assert told.count("starting on ") == 2
    assert "step 1/3" in told
    assert "step 3/3" in told
    # Of both processes, the killed one too: it is collected while the run runs.
    who = [file.name.split("-")[:2] for file in (run / "logs").iterdir()]
    for name in ("engine", "rank"):
        assert who.count([name, "0"]) == 2, who
    for step in (0, 3):
        kept = lines(run / "held_out" / f"step_{step:04d}.jsonl")
        assert len(kept) == 8
        assert all(len(group["rollouts"]) == 4 for group in kept)


@pytest.mark.slow
def test_eval_reads_the_run(run):
    numbers = axpo("eval", str(run))
    assert "Pass@1" in numbers
    assert "Tool use" in numbers


def test_report_reads_the_run(run):
    (run / "report.html").unlink()
    axpo("report", str(run))
    assert "<svg" in (run / "report.html").read_text()


def test_a_run_directory_is_never_overwritten(run):
    done = subprocess.run(
        [*AXPO, "train", DEBUG, "--run", run.name, f"--set=logging.root={run.parent}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "already exists" in done.stderr


@pytest.mark.slow
def test_each_half_runs_alone(tmp_path):
    """Rollouts without a learner; then, without an engine, an update from what they wrote."""
    settings = [f"--set=logging.root={tmp_path}", "--set=steps=1"]
    axpo("train", DEBUG, "--run", "rolled", "--rollouts-only", *settings)
    assert len(lines(tmp_path / "rolled" / "rollouts" / "step_0001.jsonl")) == 4
    axpo("train", DEBUG, "--run", "replayed", "--replay", str(tmp_path / "rolled"), *settings)
    (row,) = lines(tmp_path / "replayed" / "metrics.jsonl")
    assert row["logprob_gap_mean"] < 1e-3  # the rollouts came back exactly, images too
    assert row["skipped"] == 0
    assert (tmp_path / "replayed" / "checkpoints" / "step_0001" / "hf").is_dir()


@pytest.mark.slow
def test_asynchronous_training_is_the_same_command(tmp_path):
    settings = [
        f"--set=logging.root={tmp_path}",
        "--set=steps=3",
        "--set=max_staleness=1",
        "--set=rollout.in_flight_updates=true",
    ]
    axpo("train", DEBUG, "--run", "async", *settings)
    balanced = balance(read(tmp_path / "async" / "rollouts.jsonl"))
    assert (balanced.dispatched, balanced.in_flight) == (12, 0)
    rows = [row for row in lines(tmp_path / "async" / "metrics.jsonl") if "pass1" in row]
    ages = {name for row in rows for name in row if name.startswith("staleness/")}
    assert ages <= {"staleness/0", "staleness/1"}
    assert any(row.get("staleness/1") for row in rows)
    assert 'class="chart timeline"' in (tmp_path / "async" / "report.html").read_text()


def test_a_run_keeps_account_of_every_question(run):
    """Of the process that ended the run."""
    balanced = balance(read(run / "rollouts.jsonl"))
    assert balanced.trained + balanced.dropped == balanced.dispatched
    assert balanced.in_flight == 0
