"""200 pictures of 7680 x 4320 pixels are evaluated in little memory, and in threads.

Decoded together they are 20 GB. The test runs this file as a program, so that its peak is its own:

    python -m tests.axpo.evaluation.test_picture_memory FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES, SIZE = 200, (7680, 4320)
LIMIT = 2 * 2**30
KEPT = 4_000_000  # pixels of a picture that the tools can cut from

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def test_many_large_pictures_are_evaluated_in_less_than_two_gigabytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (270, 480, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(
        tmp_path / "0.jpg", quality=90
    )
    for number in range(1, PICTURES):
        (tmp_path / f"{number}.jpg").hardlink_to(tmp_path / "0.jpg")
    rows = [
        {"question": "Which?", "images": f"{number}.jpg", "answer": "7"}
        for number in range(PICTURES)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = subprocess.run(
        [sys.executable, "-m", __name__, tmp_path],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{found}")
    assert (found["pass1"], found["unusable"], found["groups"]) == (1.0, 0.0, PICTURES)
    assert found["peak_bytes"] < LIMIT


def main(folder: Path) -> None:
    """Evaluate the pictures of a folder; print numbers as JSON."""
    import ray

    from axpo.config import EvaluationConfig
    from axpo.evaluation.held_out import held_out
    from axpo.tasks.dataset import DatasetConfig
    from rollout_workers.config import RolloutConfig
    from rollout_workers.pool import RolloutPool
    from rollout_workers.settings import WorkerSettings

    source = str(folder / "data.jsonl")
    task = DatasetConfig(train=source, held_out=source, images={"scale_above": KEPT}).load()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = RolloutConfig(cpus_per_worker=0.1)
    pool = RolloutPool(
        WorkerSettings("", config, None, None, run_seed=0), actor_class=_seeing_worker()
    )
    pool.ready()
    started, before = time.monotonic(), _peak_bytes()
    found = held_out(pool, task, EvaluationConfig())
    numbers = {
        "pass1": found.numbers["pass1"],
        "unusable": found.numbers["unusable"],
        "groups": sum(len(rows) for rows in found.counts.values()),
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes_before": before,
        "peak_bytes": _peak_bytes(),
    }
    pool.shutdown()
    ray.shutdown()
    print(json.dumps(numbers))


def _seeing_worker() -> type:
    """Return a rollout worker that looks at a question's pictures, and shows a crop."""
    from rollout_workers.trajectory import Group, ObservationSegment, Question, pixels
    from tests.axpo.helpers import TOKENS, direct

    class SeeingWorker:
        def __init__(self, index, settings):
            pass

        async def ready(self):
            return TOKENS

        async def ping(self):
            pass

        async def rollout(self, question: Question, n, step, *, temperature, evaluating):
            (seen,) = [pixels(image) for image in question.images]
            assert seen.shape[0] * seen.shape[1] <= KEPT
            await asyncio.sleep(0.1)
            crop = ObservationSegment(np.ones(3, np.int32), (np.array(seen[:1000, :1000]),))
            rollouts = []
            for i in range(n):
                made = direct(i, 1.0, question.id)
                object.__setattr__(made, "segments", (*made.segments, crop))
                rollouts.append(made)
            return Group(question, tuple(rollouts), worker=0)

        async def shutdown(self):
            pass

    return SeeingWorker


def _peak_bytes() -> int:
    """Return the largest memory of this process so far, shared memory that it touched included."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
