"""Write a run that is followed by trackers, in a process of its own.

    python -m tests.axpo.trackers.followed_run start|resume ROOT TRACKER...

`start` writes five steps with a checkpoint after the third, and kills itself. `resume` writes the
fourth to the sixth, with other numbers, and ends the run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from axpo.record.run import RunDirectory
from axpo.trackers import Tracker, trackers
from tests.axpo.helpers import decode, direct, group, resample, zooming
from tests.axpo.record.helpers import checkpoint

RECIPE = {"name": "followed", "learner": {"lr": 1e-3, "betas": [0.9, 0.999]}, "steps": 6}
SETTINGS = {
    "wandb": {"mode": "offline", "tags": ["a"]},
    "swanlab": {"mode": "offline", "tables_every": 2},
}


def write_step(run: RunDirectory, step: int, process: int) -> None:
    """Write a step as the trainer does: its numbers, its groups, and what came after them."""
    numbers = {
        "loss": 0.5 / (step + process),
        "tool/image_zoom_in/p50_s": 1.0 / 3.0 + step,
        "family/a.b (c)/pass1": 0.125 * step,
        "skipped": 0.0,
        "kl": float("nan"),
    }
    run.log_metrics(step, numbers)
    source = zooming(1, 0.0)
    forks = resample(source, [((5, 5, 9, 9), 1.0, 9)])
    run.save_groups(step, [group([direct(0, 1.0), source], [forks], f"q{step}")], decode)
    run.log_metrics(step, {"time/checkpoint": 1e-4 * step + process})


def start(root: Path, followed: list[Tracker]) -> None:
    run = RunDirectory.create("run", RECIPE, root, trackers=followed)
    run.log_metrics(0, {"eval/pass1": 0.25})
    for step in range(1, 6):
        write_step(run, step, process=1)
        if step == 3:
            checkpoint(run, step)
    time.sleep(1)  # some trackers have sent later steps, some have not
    os.kill(os.getpid(), signal.SIGKILL)


def resume(root: Path, followed: list[Tracker]) -> None:
    run, first = RunDirectory.resume(root / "run", trackers=followed)
    for step in range(first + 1, 7):
        write_step(run, step, process=2)
    run.tracking.end({"steps": 6, "pass1_start": 0.25, "pass1_end": 0.75, "pass4_start": None})
    run.close()


if __name__ == "__main__":
    _, moment, root, *names = sys.argv
    chosen = [trackers.parse({"name": name} | SETTINGS.get(name, {})) for name in names]
    {"start": start, "resume": resume}[moment](Path(root), chosen)
