"""A run over a data set with bad rows of every kind, its report, and its resume.

The quick test has the real flow, task, ledger and report, and no engine. The slow one is the
command as a user gives it.
"""

import html
import json
import subprocess
import sys
import time

import pytest

from axpo.record.ledger import Ledger, balance, read
from axpo.record.run import RunDirectory
from axpo.record.set_aside import read_set_aside
from axpo.report.page import render
from axpo.tasks.dataset import DatasetConfig
from axpo.training.cursor import load_cursor
from axpo.training.flow import Flow
from rollout_workers.trajectory import pixels
from tests.axpo.helpers import direct
from tests.axpo.helpers import group as make_group
from tests.axpo.tasks.bad_rows import FOUND_LATE, KINDS, write_rows
from tests.axpo.training import local

GOOD, BATCH = 100, 10
ROWS = {said: row for said, row in KINDS.items() if b"unit" not in row}
EPOCH = GOOD + len(ROWS)


class ReadingPool(local.Pool):
    """Reads the images of a question before it answers, as the pool does."""

    async def group(self, question, batch):
        self.asked.append(question.id)
        for image in question.images:
            pixels(image)
        group = make_group([direct(i, i % 2, question.id) for i in range(3)], question=question.id)
        return group, group


def flow_of(file, run, cursor=None):
    """Return a flow over the rows, and its pool; its events go into the run's ledger."""
    recipe = local.recipe(
        algorithm="grpo", questions_per_step=BATCH, steps=99, seed=3, rollout={"n": 3} | ENGINE
    )
    task = DatasetConfig(train=str(file), held_out=str(file)).load()
    ledger, pool = Ledger(run / "rollouts.jsonl"), ReadingPool()
    ledger.log("started")
    flow = Flow(recipe, task, pool, local.local_resampler(recipe), ledger.log)
    if cursor is not None:
        flow.resume(cursor)
    return flow, pool


ENGINE = {"engine": {"weight_transfer": "shared_memory"}}


def test_a_run_over_bad_rows_of_every_kind_asks_all_others_and_a_resume_meets_none(tmp_path):
    (tmp_path / "data").mkdir()
    file = write_rows(tmp_path / "data", GOOD, ROWS)
    run = RunDirectory.create("run", {"name": "run"}, tmp_path)
    flow, pool = flow_of(file, run.path)
    told, sizes = [], []
    # More than an epoch: the second one meets all rows again.
    for step in range(EPOCH // BATCH + 1):
        taken = local.step_of(flow, step)
        told += taken.unusable
        sizes.append(len(taken.groups))
    for said in ROWS:
        assert sum(said in reason for reason in told) == 1, said
    assert len(told) == len(ROWS) >= 20
    # Rows whose images cannot be read took a place in a batch, once.
    late = BATCH * len(sizes) - sum(sizes)
    assert late == 12
    first_epoch = [name for name in pool.asked if name.startswith("e0-")]
    assert len(first_epoch) == len(set(first_epoch)) == GOOD + late
    flow.cursor.save(tmp_path)

    resumed, pool = flow_of(file, run.path, load_cursor(tmp_path))
    step, groups = len(sizes), 0
    while not any(name.startswith("e2-") for name in pool.asked):
        taken = local.step_of(resumed, step)
        assert (taken.unusable, len(taken.groups)) == ((), BATCH)
        step, groups = step + 1, groups + BATCH
    events = read(run.path / "rollouts.jsonl")
    assert balance(events).trained == groups
    assert sum(event["event"] == "unusable" for event in events) == len(ROWS)

    assert set(read_set_aside(run.path).training) == set(told)
    page = html.unescape(render(run.path).read_text())
    assert f"{len(ROWS)} questions could not be asked" in page
    assert all(reason in page for reason in told)


def test_the_order_of_rows_follows_the_seed(tmp_path):
    file = write_rows(tmp_path, 30, {})
    orders = {}
    for seed in (0, 0, 1):
        task = DatasetConfig(train=str(file), held_out=str(file)).load()
        task.shuffle(seed)
        order = [task.train(index).id for index in range(30)]
        assert orders.setdefault(seed, order) == order
        assert sorted(order) == sorted(f"e0-{number}" for number in range(1, 31))
    assert orders[0] != orders[1]


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_trains_over_bad_rows_to_its_end_and_resumes(tmp_path):
    (tmp_path / "data").mkdir()
    file = write_rows(tmp_path / "data", 80, dict(list(ROWS.items())[:20]))
    held_out = tmp_path / "data" / "held_out.jsonl"
    held_out.write_bytes(b"\n".join([*file.read_bytes().split(b"\n")[:4], *ROWS.values()][:9]))
    task = {"kind": "dataset", "train": str(file), "held_out": str(held_out), "max_bad_rows": 0.7}
    settings = {
        "task": task,
        "logging.root": str(tmp_path),
        "steps": 30,
        "questions_per_step": 4,
        "checkpoint_every": 10,
        "evaluation.start": False,
    }
    chosen = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "axpo.cli", "train", "deploy/recipes/debug.yaml"]
    run = tmp_path / "run"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--run=run", *chosen], stdout=log, stderr=log)
        while process.poll() is None and not (run / "checkpoints" / "step_0010").exists():
            time.sleep(0.2)
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert (run / "checkpoints" / "step_0010").exists(), said[-3000:]
    resumed = subprocess.run(
        [*command, "--resume", str(run)], capture_output=True, text=True, timeout=600, check=False
    )
    assert resumed.returncode == 0, resumed.stdout[-2000:] + resumed.stderr[-2000:]
    summary = json.loads((run / "summary.json").read_text())
    reasons = read_set_aside(run)
    assert summary["set_aside"] == reasons.count >= 20
    assert any(FOUND_LATE in reason for reason in reasons.training)
    page = html.unescape((run / "report.html").read_text())
    assert all(reason in page for reason in reasons.training)
