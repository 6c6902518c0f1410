"""The tests for GPUs are sound: they run on a CPU, whose machines are easier to come by."""

import os
import subprocess
import sys

import pytest


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tests_for_gpus_pass_in_a_dry_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q"],
        env=os.environ | {"AXPO_GPU_DRY_RUN": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "17 passed" in done.stdout
