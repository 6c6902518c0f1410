"""A run that was killed and resumed ends bit for bit where an uninterrupted one ends.

Weights, metrics and trajectories are compared.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = [sys.executable, "-m", "tests.axpo.training.seeded_run"]
SETTINGS = (
    *("steps=3", "questions_per_step=2", "rollout.n=8", "task.held_out=2", "evaluation.every=1"),
    *("learner.ranks=1", "learner.check_sync=false", "keep_checkpoints=9"),
    "resampler.schedule=batch",  # streaming depends on which group ends first
)
# What a clock decides.
MEASURED = (
    *("time/", "seconds", "rollout_seconds", "tokens_per_second", "tool_wait_share"),
    *("tool/", "eval_tool/"),
)


def start(moment: str, root: Path, name: str, *more: str) -> subprocess.Popen:
    settings = [f"--set={s}" for s in (f"logging.root={root}", *SETTINGS, *more)]
    command = [*RUN, moment, "train", "deploy/recipes/debug.yaml", "--run", name, *settings]
    with (root / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(process: subprocess.Popen, root: Path, name: str, code: int = 0) -> Path:
    assert process.wait(timeout=600) == code, (root / f"{name}.log").read_text()[-3000:]
    return root / name


def resume(run: Path) -> str:
    done = subprocess.run(
        [*RUN, "never", "train", "-", "--resume", str(run)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def outcome(run: Path) -> tuple[dict, bytes, list[str]]:
    """Return metrics by step, the last weights, and each step's trajectories.

    Without what a clock measured.
    """
    weights = run / "checkpoints" / "step_0003" / "hf" / "model.safetensors"
    files = sorted((run / "trajectories").glob("step_*.jsonl"))
    return metrics(run), weights.read_bytes(), [trajectories(file) for file in files]


def metrics(run: Path) -> dict[int, dict]:
    merged: dict[int, dict] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        merged.setdefault(row["step"], {}).update(kept)
    return merged


def trajectories(file: Path) -> str:
    groups = [json.loads(line) for line in file.read_text().splitlines()]
    for group in groups:
        everything = list(group["rollouts"])
        for resample in group["resamples"]:
            everything += resample["continuations"]
        for trajectory in everything:
            del trajectory["stats"]
    return json.dumps(groups)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    result = outcome(finish(start("never", root, "uninterrupted"), root, "uninterrupted"))
    learned = any(row.get("grad_norm") for row in result[0].values())
    assert learned, "nothing was learned, so nothing is compared"
    return result


# While learning, while saving, while sending weights, while evaluating.
@pytest.mark.parametrize(
    "moment", ["update:2:0.05", "save:2:0.2", "send_weights:3:0.02", "held_out:3:0.02"]
)
def test_killed_and_resumed_equals_uninterrupted(moment, uninterrupted, tmp_path):
    run = finish(start(moment, tmp_path, "killed"), tmp_path, "killed", -signal.SIGKILL)
    assert not (run / "summary.json").exists()
    resume(run)
    # One by one: the difference of two metrics is readable, that of two weights is not.
    for found, expected in zip(outcome(run), uninterrupted, strict=True):
        assert found == expected


def test_sigterm_saves_and_exits_and_a_damaged_checkpoint_falls_back(uninterrupted, tmp_path):
    process = start("never", tmp_path, "stopped", "checkpoint_every=1")
    run = tmp_path / "stopped"
    while not (run / "checkpoints" / "step_0001").exists():
        assert process.poll() is None, (tmp_path / "stopped.log").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process, tmp_path, "stopped")
    assert "stopped with a checkpoint" in (tmp_path / "stopped.log").read_text()
    assert not (run / "summary.json").exists()
    last = max(path.name for path in (run / "checkpoints").iterdir())
    weights = run / "checkpoints" / last / "hf" / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 8)
    said = resume(run)
    assert "damaged checkpoint set aside" in said
    assert "its content has changed" in " ".join(said.split())
    assert outcome(run)[:2] == uninterrupted[:2]
