"""A real run that carries forks, killed and resumed: every source is trained, late and once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axpo.record.ledger import balance, read
from axpo.record.run import RunDirectory
from axpo.report.rollout_view import group_view

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
AXPO = [sys.executable, "-m", "axpo.cli"]
STEPS = 4


def killed_after(step: int, root: Path, *settings: str) -> Path:
    run = root / "carry"
    command = [*AXPO, "train", "deploy/recipes/debug.yaml", "--run", "carry"]
    options = [f"--set={setting}" for setting in (f"logging.root={root}", *settings)]
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + 500
        while not (run / "checkpoints" / f"step_{step:04d}").exists():
            assert process.poll() is None, (root / "log.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, (root / "log.txt").read_text()[-3000:]
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return run


@pytest.mark.parametrize("more", [(), ("max_staleness=1", "sync_at=batch")])
def test_carried_forks_survive_a_kill(more, tmp_path):
    settings = (f"steps={STEPS}", "resampler.schedule=carry", "logging.groups_kept=4", *more)
    folder = killed_after(2, tmp_path, *settings)
    kept = (folder / "checkpoints" / "step_0002" / "questions" / "carried.jsonl").read_text()
    assert kept, "step 2 carried nothing"
    resumed = subprocess.run(
        [*AXPO, "train", "--resume", str(folder)], capture_output=True, text=True, timeout=600
    )
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]

    found = balance(read(folder / "rollouts.jsonl"))
    assert (found.dropped, found.in_flight) == (0, 0)
    run = RunDirectory(folder)
    carried, resampled = 0, 0
    for step in run.group_steps():
        for record in run.groups(step):
            carried += len(record["carried"])
            resampled += len(record["resamples"])
            assert group_view(record).under_way == []
    assert carried > 0
    rows = run.metrics()
    assert sum(row.get("resampled_prefixes", 0) for row in rows) == resampled
    # The first step has no forks, and the last one has those of two batches.
    assert rows[1]["groups_carried"] == 0
    assert rows[STEPS]["groups_carried"] > 0
    told = [json.loads(line)["event"] for line in (folder / "rollouts.jsonl").open()]
    assert told.count("carried") > 0
