"""Lock files that a killed build left: the learner and the check of set-up pass them by."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.check_stack import DEEPSPEED
from learner.extensions import build


@pytest.mark.slow
@pytest.mark.engine
def test_the_check_of_set_up_does_not_wait_for_a_stale_lock(tmp_path, monkeypatch):
    # With DeepSpeed's defaults it would wait for ever: it would compile its collectives.
    for name in (
        "deepspeed_shm_comm",
        "deepspeed_ccl_comm",
        "cpu_adam",
        "fused_adam",
        "pin_memory",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", DEEPSPEED], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ZeRO-3 on" in done.stdout
    assert len(list(tmp_path.rglob("*"))) == 10  # nothing was built


def test_a_build_finds_no_stale_lock(tmp_path):
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    seen = []
    build(lambda: seen.append(lock.exists()), tmp_path)
    assert seen == [False]


def test_a_build_waits_for_another_and_not_for_a_killed_one(tmp_path):
    slow = "lambda: (print('on', flush=True), time.sleep(60))"
    script = (
        "import pathlib, time; from learner.extensions import build; "
        f"build({slow}, pathlib.Path({str(tmp_path)!r}))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"on\n"
    with (tmp_path / "axpo.lock").open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.kill()
    other.wait()
    other.stdout.close()
    started = time.monotonic()
    build(lambda: None, tmp_path)
    assert time.monotonic() - started < 60


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        RuntimeError,
        match=r"no place to build DeepSpeed's extensions: .*file.*TORCH_EXTENSIONS_DIR",
    ):
        build(lambda: None, tmp_path / "file" / "x")
