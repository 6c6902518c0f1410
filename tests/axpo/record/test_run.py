"""The run directory: one writer, and what a resume finds."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from axpo.errors import AxpoError
from axpo.record.records import group_from_json
from axpo.record.run import RunDirectory
from axpo.report.rollout_view import group_view
from learner.config import LearnerConfig
from learner.credit import Carried, Update, credit
from tests.axpo.helpers import TOKENS, decode, direct, group, resample, zooming
from tests.axpo.record.helpers import checkpoint, exit_code

KILLED_WHILE_WRITING = """
import os, sys
from axpo.record.run import RunDirectory

RunDirectory.create("a", {}, sys.argv[1])
os.kill(os.getpid(), 9)
"""
HEAVY_IMPORTS = """
import sys
import axpo.training.metrics, axpo.training.progress, axpo.report.page, axpo.record.run

heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "PIL", "jinja2")
print([module for module in heavy if module in sys.modules])
"""


def test_create_refuses_what_exists_and_leaves_it_alone(tmp_path):
    with RunDirectory.create("a", {"seed": 1}, tmp_path) as run:
        run.log_metrics(1, {"pass1": 0.5})
    with pytest.raises(AxpoError, match="a already exists") as error:
        RunDirectory.create("a", {"seed": 2}, tmp_path)
    assert "\n" not in str(error.value)
    assert RunDirectory.open(run.path).recipe() == {"seed": 1}
    assert RunDirectory.open(run.path).metrics() == [{"step": 1, "pass1": 0.5}]


@pytest.mark.parametrize("name", ["", "a/b", "..", "/abs"])
def test_create_refuses_names_that_leave_the_root(tmp_path, name):
    with pytest.raises(AxpoError, match="run name"):
        RunDirectory.create(name, {}, tmp_path)


def test_open_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(AxpoError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_a_run_that_is_not_there_is_answered_with_the_one_that_was_meant(tmp_path):
    RunDirectory.create("demo-axpo-7", {}, tmp_path).close()
    with pytest.raises(AxpoError, match=r"did you mean \S+/demo-axpo-7\?"):
        RunDirectory.open(tmp_path / "demo-axpo-8")
    with pytest.raises(AxpoError, match=r"in it$"):
        RunDirectory.open(tmp_path / "other")


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    with pytest.raises(AxpoError, match="in use by process"):
        RunDirectory.resume(run.path)
    assert RunDirectory.open(run.path).metrics() == []
    run.close()
    RunDirectory.resume(run.path)[0].close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    assert exit_code(KILLED_WHILE_WRITING, tmp_path) == -signal.SIGKILL
    run, step = RunDirectory.resume(tmp_path / "a")
    run.close()
    assert step == 0


def test_resume_winds_back_to_the_last_complete_checkpoint(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (0, 1, 2, 3, 4, 5):
        run.log_metrics(step, {"pass1": step / 10})
        run.log_held_out(step, {"": [[4, step, 0, 0]]})
        run.save_groups(step, [group([direct(0, 1.0)])], decode)
        run.save_held_out(step, [group([direct(0, 1.0)])], decode)
    for step in (2, 4):
        checkpoint(run, step)
    run.checkpoints.path(5).with_name(".step_0005.partial").mkdir()
    run.checkpoints.path(5).with_name("notes").mkdir()
    with (run.path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "pass1": 0.')  # killed while writing
    run.close()

    resumed, step = RunDirectory.resume(run.path)
    assert step == 4
    assert resumed.checkpoints.latest() == (4, run.path / "checkpoints" / "step_0004")
    assert not run.checkpoints.path(5).with_name(".step_0005.partial").exists()
    assert run.checkpoints.path(5).with_name("notes").exists()
    assert resumed.group_steps() == [0, 1, 2, 3, 4]
    assert len(list((run.path / "held_out").glob("*.jsonl"))) == 5
    resumed.log_metrics(5, {"pass1": 0.9})
    resumed.log_held_out(5, {"": [[4, 0, 0, 0]]})
    resumed.close()
    assert [row["counts"][""][0][1] for row in resumed.held_out()] == [0, 1, 2, 3, 4, 0]
    assert [row["pass1"] for row in resumed.metrics()] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.9]
    assert all(json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines())


def test_metrics_of_one_step_are_joined_and_stay_json(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.log_metrics(1, {"pass1": 0.5, "kl": float("nan"), "grad_norm": float("inf")})
        run.log_metrics(1, {"eval/pass1": np.float64(0.25)})
        assert run.metrics() == [
            {"step": 1, "pass1": 0.5, "kl": None, "grad_norm": None, "eval/pass1": 0.25}
        ]
        assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_events_keep_their_order(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        run.log_event("start", seed=1)
        run.log_event("dropped_group", question="q", end="deadline")
    lines = (run.path / "events.jsonl").read_text().splitlines()
    start, dropped = [json.loads(line) for line in lines]
    assert [start["event"], dropped["event"]] == ["start", "dropped_group"]
    assert dropped["question"] == "q"
    assert start["time"].endswith("+00:00")


def test_reading_a_run_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HEAVY_IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[]\n"


def test_a_kept_group_gets_its_forks_when_they_are_back(tmp_path):
    config = LearnerConfig()
    rollouts = [direct(0, 1.0), zooming(1, 0.0)]
    made = resample(rollouts[1], [((5, 5, 9, 9), 1.0, 9), ((0, 0, 1, 1), 0.0, 9)])
    first = dataclasses.replace(group(rollouts), carried=(1,))
    other = group([direct(0, 1.0, "r"), direct(1, 0.0, "r")], question="r")
    with RunDirectory.create("carried", {"steps": 2}, tmp_path) as run:
        now = credit([first, other], TOKENS, config)
        run.save_groups(1, [first, other], decode, now)
        (record, _) = run.groups(1)
        # Chosen to be kept, because it has forks, and shown to wait for them.
        assert (record["question"]["id"], record["resamples"]) == ("q", [])
        assert group_view(record).under_way == [2]

        late = Carried(dataclasses.replace(first, resamples=(made,)), Update(step=0, groups=2))
        run.complete_groups([late], decode, credit([], TOKENS, config, [late]))
        (record, untouched) = run.groups(1)
        assert untouched["question"]["id"] == "r"
        assert group_view(record).under_way == []
        # 1, and the prefix with 1 in place of 0: no rollout differs from the mean. Of the
        # continuations one of two is right.
        credits = [row["credit"]["advantage"] for row in record["rollouts"]]
        assert credits == [1.0, 0.0]
        (shown,) = record["resamples"]
        assert [row["credit"]["advantage"] for row in shown["continuations"]] == [1.0, -1.0]
        whole = group_from_json(record, run.images)
        assert (whole.carried, len(whole.resamples)) == ((1,), 1)
