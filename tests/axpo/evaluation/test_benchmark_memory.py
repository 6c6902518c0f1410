"""200 pictures of 7680 x 4320 pixels of HR-Bench: little memory in the driver, one decode each.

Decoded together they are 20 GB. The test runs this file as a program, so that its peak is its own:

    python -m tests.axpo.evaluation.test_benchmark_memory FOLDER
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.axpo.evaluation.invented import jpeg

QUESTIONS, SIZE, SAMPLES = 200, (7680, 4320), 4
LIMIT = 2 * 2**30

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_200_pictures_of_8k_take_little_of_the_driver_and_are_decoded_once(tmp_path):
    write_rows(tmp_path)
    run = subprocess.run(
        [sys.executable, "-m", __name__, tmp_path],
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{found}")
    assert (found["measured"], found["decoded"]) == (QUESTIONS, QUESTIONS)
    assert found["private_bytes"] < LIMIT


def write_rows(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (270, 480, 3), dtype=np.uint8)
    encoded = jpeg(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC))
    # What follows the end of a JPEG is not read: these are 200 files of other digests.
    images = [base64.b64encode(encoded + bytes([n])).decode() for n in range(QUESTIONS)]
    columns: dict[str, list] = {"index": list(range(QUESTIONS)), "image": images}
    columns |= {name: [f"{name} {n}" for n in range(QUESTIONS)] for name in ("question", *"ABCD")}
    columns |= {"answer": ["A"] * QUESTIONS, "category": ["single"] * QUESTIONS}
    columns |= {"cycle_category": ["0"] * QUESTIONS}
    (folder / "HR-Bench").mkdir()
    pq.write_table(pa.table(columns), folder / "HR-Bench" / "hr_bench_8k.parquet")


def main(data: Path) -> None:
    """Evaluate the rows below a folder; print numbers as JSON."""
    import ray

    import axpo.evaluation.paper  # noqa: F401  (registers the benchmarks)
    from axpo.evaluation import rows
    from axpo.evaluation.benchmark import benchmarks
    from axpo.evaluation.measure import measure
    from axpo.evaluation.plan import Plan, load_questions
    from axpo.evaluation.results import Results
    from axpo.tasks.judge import judges
    from rollout_workers.config import RolloutConfig
    from rollout_workers.pool import RolloutPool
    from rollout_workers.settings import WorkerSettings

    decoded = []

    def counting(source, limits):
        decoded.append(source)
        return original(source, limits)

    original, rows.decode = rows.decode, counting
    chosen = benchmarks.parse("hrbench-8k")
    plan = Plan((chosen,), data, SAMPLES, 1.0, judges.parse("exact"))
    asked, _ = load_questions(plan)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = RolloutConfig(cpus_per_worker=0.1)
    pool = RolloutPool(
        WorkerSettings("", config, None, None, run_seed=0), actor_class=_seeing_worker()
    )
    pool.ready()

    @contextmanager
    def engines(task):
        # The worker's process has a vocabulary of its own.
        yield pool, lambda ids: "token " * len(ids)

    private = _Peak("RssAnon")
    started = time.monotonic()
    lines = [one.to_json() for one in asked]
    with Results(data / "out", plan.to_json(), lines) as results:
        _, summary = measure(plan, asked, results, engines, lambda *_: None)
    numbers = {
        "measured": summary["benchmarks"]["hrbench-8k"]["measured"],
        "decoded": len(decoded),
        "seconds": round(time.monotonic() - started, 1),
        "private_bytes": private.bytes,
        "peak_bytes_with_object_store": _bytes("VmHWM"),
    }
    pool.shutdown()
    ray.shutdown()
    print(json.dumps(numbers))


def _seeing_worker() -> type:
    """Return a rollout worker that looks at a question's picture, and shows a crop."""
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
            assert seen.shape == (SIZE[1], SIZE[0], 3)
            await asyncio.sleep(0.1)
            crop = ObservationSegment(np.ones(3, np.int32), (np.array(seen[:1000, :1000]),))
            rollouts = []
            for i in range(n):
                made = direct(i, 0.0, question.id)
                object.__setattr__(made, "segments", (*made.segments, crop))
                rollouts.append(made)
            return Group(question, tuple(rollouts), worker=0)

        async def shutdown(self):
            pass

    return SeeingWorker


class _Peak:
    """The largest value of one number of this process, looked at every 20 ms."""

    def __init__(self, name: str) -> None:
        self.bytes, self._name = 0, name
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _bytes(self._name))
            time.sleep(0.02)


def _bytes(name: str) -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
