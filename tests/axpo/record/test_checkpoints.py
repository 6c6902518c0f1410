"""Which checkpoint a resume goes back to, and which are kept."""

from __future__ import annotations

import signal

import pytest

from axpo.record.run import RunDirectory
from tests.axpo.record.helpers import checkpoint, exit_code

KILLED_WHILE_RENAMING = """
import os, sys
from pathlib import Path
from axpo.record.run import RunDirectory
from tests.axpo.record.helpers import checkpoint

run = RunDirectory.create("a", {}, sys.argv[1])
checkpoint(run, 1)
Path.rename = lambda *_: os.kill(os.getpid(), 9)
checkpoint(run, 2)
"""


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (1, 2):
        run.log_metrics(step, {"pass1": 0.5})
        checkpoint(run, step)
    run.close()
    weights = run.checkpoints.path(2) / "weights"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[3] ^= 1
        weights.write_bytes(content)
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "missing":
        weights.unlink()
    else:
        (run.checkpoints.path(2) / "manifest.json").write_text('{"files"')
    resumed, step = RunDirectory.resume(run.path)
    assert step == 1
    assert ("manifest.json" if damage == "manifest" else "weights") in resumed.damaged[0]
    assert not run.checkpoints.path(2).exists()
    assert run.checkpoints.path(2).with_name(".damaged-step_0002").is_dir()
    assert [row["step"] for row in resumed.metrics()] == [1]
    resumed.close()


@pytest.mark.parametrize(
    "text",
    [
        *("", "\0", "[]", "{}", "[" * 100_000),
        *('{"files": []}', '{"files": {"weights": 7}}', '{"files": {"weights": {}}}'),
    ],
)
def test_a_manifest_that_is_none_is_damage(tmp_path, text):
    with RunDirectory.create("a", {}, tmp_path) as run:
        checkpoint(run, 1)
        (run.checkpoints.path(1) / "manifest.json").write_text(text)
        (found,) = run.checkpoints.complete()
        assert "manifest.json: " in found.damage()


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step, pass1 in enumerate([0.3, 0.8, 0.5, 0.8, 0.4, None, 0.6], 1):
        run.log_metrics(step, {} if pass1 is None else {"eval/pass1": pass1})
        checkpoint(run, step)
        run.prune_checkpoints(2)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "step_0004",
        "step_0006",
        "step_0007",
    ]
    run.close()


def test_checkpoints_sort_by_number(tmp_path):
    run = RunDirectory.create("a", {}, tmp_path)
    for step in (9999, 10000):
        run.checkpoints.path(step).mkdir(parents=True)
    assert run.checkpoints.latest() == (10000, run.path / "checkpoints" / "step_10000")
    run.close()


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    with RunDirectory.create("a", {}, tmp_path) as run:
        assert run.checkpoints.latest() is None


def test_a_kill_between_save_and_rename_leaves_the_checkpoint_before_and_no_leftover(tmp_path):
    assert exit_code(KILLED_WHILE_RENAMING, tmp_path) == -signal.SIGKILL
    folder = tmp_path / "a" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [".step_0002.partial", "step_0001"]
    # All was written but the name.
    assert (folder / ".step_0002.partial" / "manifest.json").exists()
    run, step = RunDirectory.resume(tmp_path / "a")
    run.close()
    assert (step, run.damaged) == (1, [])
    assert [path.name for path in folder.iterdir()] == ["step_0001"]
