"""The runs of a study: which are left, how one is started or continued, and what is kept of it. Every run is an `axpo train`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from axpo.record.run import RunDirectory
from axpo.record.summary import read_summary
from benchmarks.result import machine, versions

GRACE_S = 900.0
"""Seconds for a run that was asked to end to finish its step and write a checkpoint."""

METRICS = (
    "step", "pass1", "tool_use_rate", "pass1_given_tool", "tool_all_wrong_rate", "resampled_prefixes", "recovery_rate", "generated_tokens",
)  # fmt: skip
"""What a raw result keeps of each training step, of a mixed task also of each family (`family/<name>/...`)."""

Launch = Callable[[Sequence[str], float], int]
"""Runs a command for at most so many seconds; its exit code."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def load_jobs(path: Path) -> list[Job]:
    """All runs of a study's YAML file, seed by seed: what is finished early compares all arms.

    `seeds` has how many an arm has, by arm, `default` for the others. Raises ValueError where it names an arm that is not there.
    """
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms, seeds = study["arms"], study["seeds"]
    if unknown := seeds.keys() - arms.keys() - {"default"}:
        raise ValueError(
            f"{path}: seeds of {', '.join(sorted(unknown))}, expected an arm or `default`"
        )
    return [
        Job(arm, seed, study["recipe"], (*study["overrides"], *overrides, f"seed={seed}"))
        for seed in range(1, max(seeds.values()) + 1)
        for arm, overrides in arms.items()
        if seed <= seeds.get(arm, seeds["default"])
    ]


def run_pending(
    jobs: Sequence[Job], results: Path, runs: Path, minutes: float, launch: Launch | None = None
) -> list[str]:
    """Run what has no result yet, one after the other, until the time is up; returns the names of runs that failed.

    The run in progress is then asked to end with a checkpoint, and continued by the next call.
    """
    launch = launch or launched
    end = time.monotonic() + 60 * minutes
    failed = []
    for job in jobs:
        file = results / f"{job.name}.json"
        if file.exists():
            continue
        if _summary(runs / job.name) is None:
            left = end - time.monotonic()
            if left <= 0:
                break
            if launch(command(job, runs), left) and time.monotonic() < end:
                failed.append(job.name)
                continue
        if _summary(runs / job.name) is not None:
            results.mkdir(parents=True, exist_ok=True)
            file.write_text(written(collect(job, runs / job.name)), encoding="utf-8")
    return failed


def command(job: Job, runs: Path) -> list[str]:
    """Starts a run, or continues it where its directory is there."""
    axpo = [sys.executable, "-m", "axpo.cli", "train", job.recipe]
    if (runs / job.name).is_dir():
        return [*axpo, "--resume", str(runs / job.name)]
    settings = [
        part
        for override in (*job.overrides, f"logging.root={runs}")
        for part in ("--set", override)
    ]
    return [*axpo, "--run", job.name, *settings]


def launched(arguments: Sequence[str], seconds: float) -> int:
    """Runs a command; after `seconds` SIGTERM, which ends training after its step."""
    with subprocess.Popen(arguments) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def collect(job: Job, run: Path) -> dict[str, Any]:
    """What a finished run was, ran on and cost, its held-out questions' counts, and of its metrics those that are rendered."""
    directory = RunDirectory.open(run)
    return {
        "arm": job.arm,
        "seed": job.seed,
        "recipe": {
            section: value for section, value in directory.recipe().items() if section != "logging"
        },  # no paths of this machine
        "machine": machine(),
        "versions": versions(("torch", "deepspeed", "ray", "transformers", "numpy")),
        "summary": _rounded(read_summary(directory.path) or {}),
        "held_out": directory.held_out(),
        "metrics": [
            _rounded({name: value for name, value in row.items() if _kept(name)})
            for row in directory.metrics()
            if row["step"]
        ],
    }


def written(result: dict[str, Any]) -> str:
    """JSON of a line an entry, and in lists of a line an item: small, and read by a diff."""
    entries = []
    for name, value in result.items():
        text = (
            "[\n" + ",\n".join(map(_compact, value)) + "\n]"
            if isinstance(value, list)
            else _compact(value)
        )
        entries.append(f"{_compact(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """To six significant digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def _kept(metric: str) -> bool:
    family, _, name = metric.rpartition("/")
    return name in METRICS and (not family or family.startswith("family/"))


def _summary(run: Path) -> dict[str, Any] | None:
    return read_summary(RunDirectory.open(run).path) if run.is_dir() else None
