"""Checkpoints and a summary, as a run writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from axpo.record.run import RunDirectory
from learner import manifest

NUMBERS = {
    "pass1_start": 0.5,
    "pass1_end": 0.75,
    "pass4_start": 0.7,
    "pass4_end": 0.9,
    "tool_use_start": 0.3,
    "tool_use_end": 0.6,
    "steps": 20,
    "seconds": 425.0,
    "tokens": 123456,
}


def checkpoint(run: RunDirectory, step: int) -> Path:
    """Write a checkpoint of one small file, the way the learner writes its own."""
    folder = run.checkpoints.path(step)
    temporary = manifest.partial(folder)
    temporary.mkdir(parents=True)
    (temporary / "weights").write_bytes(f"weights of step {step}".encode())
    manifest.seal(folder, manifest.digests(temporary, manifest.files(temporary)), {"ranks": 1})
    return folder


def exit_code(script: str, *arguments: object) -> int:
    """Run a script in a process of its own and return its exit code."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=60).returncode
