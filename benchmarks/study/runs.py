"""The runs of a study: which are left, how one is started or continued, and what is kept of it.

Every run is an `axpo train`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from axpo.record.run import RunDirectory
from axpo.record.summary import read_summary
from benchmarks.result import machine, versions

GRACE_S = 900.0
"""Seconds for a run that was asked to end to finish its step and write a checkpoint."""

METRICS = (
    "step",
    "pass1",
    "tool_use_rate",
    "pass1_given_tool",
    "tool_all_wrong_rate",
    "resampled_prefixes",
    "recovery_rate",
    "generated_tokens",
)
"""What a raw result keeps of each training step. Of a mixed task it also keeps what each family has
of these (`family/<name>/...`)."""

Launch: TypeAlias = Callable[[Sequence[str], float], int]
"""Run a command for at most so many seconds, and return its exit code."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: str
    seed: int
    recipe: str  # its file
    overrides: tuple[str, ...]  # `key=value`, as `axpo train --set` takes them

    @property
    def name(self) -> str:
        """The name of the run and of its result."""
        return f"{self.arm}-{self.seed}"


def load_jobs(path: Path) -> list[Job]:
    """Return all runs of a study's YAML file, seed by seed.

    So what is finished early compares all arms. `seeds` says how many seeds an arm has, `default`
    how many the others have.

    Raises:
        ValueError: `seeds` names an arm that is not there.
    """
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms, seeds = study["arms"], study["seeds"]
    unknown = seeds.keys() - arms.keys() - {"default"}
    if unknown:
        raise ValueError(
            f"{path}: seeds of {', '.join(sorted(unknown))}, expected an arm or `default`"
        )
    # The arms of a seed come one after the other, before those of the next seed.
    jobs = []
    for seed in range(1, max(seeds.values()) + 1):
        for arm, overrides in arms.items():
            if seed <= seeds.get(arm, seeds["default"]):
                settings = (*study["overrides"], *overrides, f"seed={seed}")
                jobs.append(Job(arm, seed, study["recipe"], settings))
    return jobs


def run_pending(
    jobs: Sequence[Job], results: Path, runs: Path, minutes: float, launch: Launch | None = None
) -> list[str]:
    """Run what has no result yet, one after the other, until the time is up.

    The run in progress is then asked to end with a checkpoint. The next call continues it.

    Args:
        jobs: the runs of the study.
        results: folder of the raw results.
        runs: folder of the run directories.
        minutes: when to stop.
        launch: starts a run; None: `launched`.

    Returns:
        The names of the runs that failed.
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
            exit_code = launch(command(job, runs), left)
            # A run that was asked to end because the time is up has not failed.
            if exit_code and time.monotonic() < end:
                failed.append(job.name)
                continue
        # A run that was stopped by the time has no summary yet, and no result.
        if _summary(runs / job.name) is not None:
            results.mkdir(parents=True, exist_ok=True)
            file.write_text(written(collect(job, runs / job.name)), encoding="utf-8")
    return failed


def command(job: Job, runs: Path) -> list[str]:
    """Return the command that starts a run, or continues it if its directory is there."""
    axpo = [sys.executable, "-m", "axpo.cli", "train", job.recipe]
    if (runs / job.name).is_dir():
        return [*axpo, "--resume", str(runs / job.name)]
    settings = []
    for override in (*job.overrides, f"logging.root={runs}"):
        settings += ["--set", override]
    return [*axpo, "--run", job.name, *settings]


def launched(arguments: Sequence[str], seconds: float) -> int:
    """Run a command; after `seconds` send SIGTERM, which ends training after its step.

    Args:
        arguments: the command.
        seconds: how long it may run before it is asked to end. `GRACE_S` later it is killed.

    Returns:
        Its exit code.
    """
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
    """Return the raw result of a finished run.

    It says what the run was, what it ran on and what it cost, and has the counts of its held-out
    questions and those of its metrics that are rendered.
    """
    directory = RunDirectory.open(run)
    recipe = dict(directory.recipe())
    # A result that is kept in git names no path of this machine.
    recipe.pop("logging", None)
    metrics = []
    for row in directory.metrics():
        if row["step"]:
            kept = {name: value for name, value in row.items() if _is_kept(name)}
            metrics.append(_rounded(kept))
    return {
        "arm": job.arm,
        "seed": job.seed,
        "recipe": recipe,
        "machine": machine(),
        "versions": versions(("torch", "deepspeed", "ray", "transformers", "numpy")),
        "summary": _rounded(read_summary(directory.path) or {}),
        "held_out": directory.held_out(),
        "metrics": metrics,
    }


def written(result: dict[str, Any]) -> str:
    """Return a result as JSON that is small, and whose changes a diff can show.

    Every entry has a line of its own, and so has every item of a list.
    """
    # The json module indents everything or nothing.
    entries = []
    for name, value in result.items():
        text = _compact(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(_compact, value)) + "\n]"
        entries.append(f"{_compact(name)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers rounded to six significant digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }


def _is_kept(metric: str) -> bool:
    family, _, name = metric.rpartition("/")
    return name in METRICS and (not family or family.startswith("family/"))


def _summary(run: Path) -> dict[str, Any] | None:
    """Return the summary of a run; None if it is not finished or was never started."""
    if not run.is_dir():
        return None
    return read_summary(RunDirectory.open(run).path)
