"""Every tracker has the numbers of metrics.jsonl, offline, over a kill and a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from axpo.config import parse_recipe
from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.trackers import Session, Sink, Tracker, followers, trackers
from tests.axpo.record.helpers import checkpoint
from tests.axpo.trackers import readers

QUICK = ("tensorboard", "trackio", "wandb", "swanlab")
"""MLflow imports for seconds in each of its processes."""


@pytest.fixture(scope="module")
def run(tmp_path_factory, monkeypatch_module):
    root = tmp_path_factory.mktemp("followed")
    monkeypatch_module.setenv("TRACKIO_DIR", str(root / "trackio"))
    return killed_and_resumed(root, *QUICK)


def killed_and_resumed(root: Path, *names: str) -> Path:
    """Return the directory of a run that was killed after step 5 and resumed from step 3."""
    command = [sys.executable, "-m", "tests.axpo.trackers.followed_run"]
    for moment, code in (("start", -signal.SIGKILL), ("resume", 0)):
        done = subprocess.run(
            [*command, moment, str(root), *names],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return root / "run"


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        # The environment of a developer must not send a test's numbers anywhere.
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        yield patch


def written(run: Path) -> dict[int, dict[str, float]]:
    """Return the numbers of metrics.jsonl by step, with a reader of its own."""
    steps: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        step = steps.setdefault(row.pop("step"), {})
        step |= {name: value for name, value in row.items() if value is not None}
    return steps


@pytest.mark.parametrize("name", QUICK)
def test_a_tracker_has_the_numbers_of_metrics_jsonl_over_a_kill_and_a_resume(run, name):
    expected = written(run)
    assert list(expected) == [0, 1, 2, 3, 4, 5, 6]
    # The first process wrote 0.5 / 5 for step 4, the second one 0.5 / 6.
    assert expected[4]["loss"] == 0.5 / 6
    if name == "tensorboard":  # it keeps float32
        expected = {
            step: {key: float(np.float32(value)) for key, value in row.items()}
            for step, row in expected.items()
        }
    found = getattr(readers, name)(run)
    assert {step: found[step] for step in sorted(found)} == expected


@pytest.mark.slow
def test_mlflow_has_the_numbers_of_metrics_jsonl_over_a_kill_and_a_resume(
    tmp_path, monkeypatch_module
):
    run = killed_and_resumed(tmp_path, "mlflow")
    expected = written(run)
    for row in list(expected.values())[1:]:  # no brackets in MLflow's names
        row["family/a.b _c_/pass1"] = row.pop("family/a.b (c)/pass1")
    found = readers.mlflow(run)
    assert {step: found[step] for step in sorted(found)} == expected
    assert len(list(run.glob("mlflow/artifacts/*/artifacts/trajectories/step_*.json"))) == 6


def test_both_processes_wrote_into_one_run_of_each_tracker(run):
    ids = json.loads((run / "trackers.json").read_text())
    assert set(ids) == set(QUICK)
    for name, pattern in (("wandb", "offline-run-*"), ("swanlab", "run-*")):
        (current,) = run.glob(f"{name}/{pattern}")
        (replaced,) = run.glob(f"{name}/replaced-{pattern}")
        assert current.name.endswith(ids[name])
        assert replaced.name.endswith(ids[name])
    assert not (run / "events.jsonl").exists()  # no tracker had a fault


def test_tables_hold_each_rollout_and_continuation_of_the_kept_groups(run):
    """W&B has all steps; SwanLab was asked for every second."""
    tables = sorted(run.glob("wandb/offline-run-*/files/media/table/trajectories_*"))
    assert [int(file.name.split("_")[1]) for file in tables] == [1, 2, 3, 4, 5, 6]
    table = json.loads(tables[3].read_text())
    columns = {name: [row[i] for row in table["data"]] for i, name in enumerate(table["columns"])}
    assert columns["question"] == ["q4"] * 3
    assert columns["rollout"] == [0, 1, 1]
    assert columns["fork"] == [None, None, 0]
    assert columns["reward"] == [1.0, 0.0, 1.0]
    assert columns["text"][0] == "look</think>7.<|im_end|>"
    assert len(list(run.glob("swanlab/run-*/media/echarts/*"))) == 3


class Broken(Tracker):
    """Take nothing."""

    def open(self, session: Session) -> Sink:
        return _Broken()


class _Broken:
    id = "broken"

    def log(self, step, numbers):
        raise OSError("no route to host")

    def table(self, step, table):
        pass

    def close(self, summary):
        pass


class Exiting(Broken):
    """Exit, as a program does that finds no key."""

    def open(self, session: Session) -> Sink:
        return _Exiting()


class _Exiting(_Broken):
    taken: ClassVar[list[int]] = []

    def log(self, step, numbers):
        if step == 1:
            raise SystemExit("no key")
        self.taken.append(step)


class Once(Broken):
    """Start once, and never again."""

    def open(self, session: Session) -> Sink:
        if session.id is not None:
            raise PermissionError("no key")
        return _Once()


class _Once(_Broken):
    def log(self, step, numbers):
        pass


class Dead(Broken):
    """Do not start."""

    def open(self, session: Session) -> Sink:
        raise PermissionError("no key")


class Absent(Broken):
    """Need a package that is not there."""

    package = "no_such_package_at_all"


def test_a_tracker_that_breaks_is_told_once_and_ends_no_run(tmp_path):
    run = RunDirectory.create("r", {}, tmp_path, trackers=[Broken()])
    for step in range(3):
        run.log_metrics(step, {"loss": 1.0})
    run.close()
    (event,) = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert event["event"] == "tracker fault"
    assert event["reason"].endswith("OSError: no route to host")
    assert len(run.metrics()) == 3


def test_a_tracker_that_exits_is_told_and_gets_the_next_steps(tmp_path):
    run = RunDirectory.create("r", {}, tmp_path, trackers=[Exiting()])
    for step in range(3):
        run.log_metrics(step, {"loss": 1.0})
    run.close()
    assert "SystemExit: no key" in (run.path / "events.jsonl").read_text()
    assert _Exiting.taken == [0, 2]


def test_a_tracker_that_does_not_start_again_in_the_middle_of_a_run_does_not_end_it(tmp_path):
    run = RunDirectory.create("r", {}, tmp_path, trackers=[Once()])
    run.log_metrics(1, {"loss": 1.0})
    checkpoint(run, 1)
    assert run.wind_back() == 1
    run.log_metrics(2, {"loss": 2.0})
    (fault,) = run.tracking.take_faults()
    assert fault.endswith("PermissionError: no key; the run goes on without trackers")
    assert run.tracking.take_faults() == []
    run.close()
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_link_in_place_of_the_ids_is_refused_and_what_it_leads_to_is_left_alone(tmp_path):
    run = RunDirectory.create("r", {}, tmp_path, trackers=[Slow()])
    run.close()
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (run.path / "trackers.json").unlink()
    (run.path / "trackers.json").symlink_to(mine)
    with pytest.raises(AxpoError, match=r"trackers.json: is no regular file"):
        RunDirectory.resume(run.path, trackers=[Slow()])
    assert mine.read_text() == "mine"


class Slow(Broken):
    """Wait until the test lets it go on."""

    def open(self, session: Session) -> Sink:
        return _Slow()


class _Slow(_Broken):
    go_on = threading.Event()
    taken: ClassVar[list[int]] = []

    def log(self, step, numbers):
        taken = self.taken  # the next run of the test has another list
        assert self.go_on.wait(60)
        taken.append(step)


def test_a_run_does_not_wait_for_a_slow_tracker_but_for_some_seconds_at_its_end(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(followers, "CLOSE_S", 0.2)
    stuck = RunDirectory.create("stuck", {}, tmp_path, trackers=[Slow()])
    stuck.log_metrics(1, {"loss": 1.0})
    stuck.close()
    assert "was not done 0.2 s after the run ended" in (stuck.path / "events.jsonl").read_text()
    _Slow.go_on.set()

    monkeypatch.setattr(followers, "CLOSE_S", 60.0)
    _Slow.go_on, _Slow.taken = threading.Event(), []
    run = RunDirectory.create("slow", {}, tmp_path, trackers=[Slow()])
    for step in range(3):
        run.log_metrics(step, {"loss": 1.0})
    assert _Slow.taken == []  # and yet all three calls have returned
    _Slow.go_on.set()
    run.close()
    assert _Slow.taken == [0, 1, 2]


def test_a_tracker_that_does_not_start_leaves_no_run_behind(tmp_path):
    with pytest.raises(AxpoError, match="did not start: PermissionError: no key"):
        RunDirectory.create("r", {}, tmp_path, trackers=[Dead()])
    assert not (tmp_path / "r").exists()
    # A resume leaves the run as it is, and unlocked.
    run = RunDirectory.create("r", {}, tmp_path)
    run.log_metrics(1, {"loss": 1.0})
    checkpoint(run, 1)
    run.close()
    with pytest.raises(AxpoError, match="did not start"):
        RunDirectory.resume(run.path, trackers=[Dead()])
    assert RunDirectory.resume(run.path)[1] == 1


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(tmp_path, monkeypatch):
    own = trackers.parse(f"{__name__}:Absent")
    missing = r"no_such_package_at_all is not installed: pip install"
    with pytest.raises(AxpoError, match=rf"Absent: {missing} no_such_package_at_all,"):
        RunDirectory.create("r", {}, tmp_path, trackers=[own])
    assert not list(tmp_path.iterdir())
    swanlab = trackers.parse("swanlab")
    monkeypatch.setattr(type(swanlab), "package", own.package)
    with pytest.raises(AxpoError, match=rf"swanlab: {missing} 'axpo\[swanlab\]',"):
        swanlab.check()
    # A folder of that name, which trackers leave behind, is no package.
    (tmp_path / "no_such_package_at_all").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AxpoError, match="not installed"):
        own.check()


def test_ranks_that_were_lost_take_the_trackers_back_too(tmp_path):
    tracker = trackers.parse("tensorboard")
    run = RunDirectory.create("r", {}, tmp_path, trackers=[tracker])
    run.log_metrics(1, {"loss": 1.0})
    checkpoint(run, 1)
    run.log_metrics(2, {"loss": 2.0, "skipped": 1.0})
    assert run.wind_back() == 1
    run.log_metrics(2, {"loss": 3.0})
    run.close()
    assert readers.tensorboard(run.path) == {1: {"loss": 1.0}, 2: {"loss": 3.0}}


def test_a_recipe_names_trackers_with_settings_and_each_once():
    base = {"name": "n", "model": "m", "task": {"kind": "small_digit"}, "steps": 1}
    base |= {"questions_per_step": 1, "rollout": {"engine": {"weight_transfer": "shared_memory"}}}
    wanted = ["tensorboard", {"name": "wandb", "mode": "offline"}]
    recipe = parse_recipe(base | {"logging": {"trackers": wanted}})
    assert [tracker.name for tracker in recipe.logging.trackers] == ["tensorboard", "wandb"]
    assert recipe.logging.trackers[1].mode == "offline"
    for refused, why in (
        (["wandbb"], "expected one of mlflow, swanlab, tensorboard"),
        ([{"name": "wandb", "mod": "offline"}], "mod"),
        (["wandb", {"name": "wandb"}], "wandb is there twice"),
    ):
        with pytest.raises(AxpoError, match=why):
            parse_recipe(base | {"logging": {"trackers": refused}})
    with pytest.raises(AxpoError, match=r"is now logging.trackers: \[tensorboard\]"):
        parse_recipe(base | {"logging": {"tensorboard": True}})
