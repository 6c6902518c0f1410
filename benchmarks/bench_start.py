"""The start of a run and the whole demo, against an earlier commit on the same machine.

The earlier code is a git worktree in a temporary folder. Both run as `axpo train demo`, with the
packages of this environment, in turns.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from axpo.record import ledger
from benchmarks.result import Entry, at_most
from benchmarks.timing import interleaved, medians

BEFORE = "0adfde9"
RECIPE = "deploy/recipes/demo.yaml"
HERE = Path(__file__).resolve().parent.parent
FIRST_QUESTION_S, DEMO_S, STOP_S = 300.0, 1800.0, 180.0
"""Seconds for a run to ask its first question, to end, and to end when it is asked to."""


@dataclass(frozen=True)
class Code:
    """A checkout, whose runs go into a folder."""

    checkout: Path
    runs: Path

    def check(self) -> None:
        """Raise RuntimeError if a process would import other code than the checkout's."""
        code = "import axpo, rollout_workers; print(axpo.__file__, rollout_workers.__file__)"
        printed = self._output("-c", code).split()
        if not all(Path(file).is_relative_to(self.checkout) for file in printed):
            raise RuntimeError(f"{self.checkout}: its processes would import {printed}")

    def start(self) -> float:
        """Start the demo without an evaluation; return the seconds until its first question."""
        began = time.time()
        with self._demo(f"start-{began:.3f}", "evaluation.start=false") as (process, run):
            asked = _first_question(run / "rollouts.jsonl", process, began + FIRST_QUESTION_S)
            # It ends after its first step, with a checkpoint.
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
        return asked - began

    def demo(self) -> None:
        """Run the whole demo."""
        with self._demo(f"demo-{time.time():.3f}") as (process, run):
            code = process.wait(DEMO_S)
        if code or not (run / "summary.json").is_file():
            raise RuntimeError(f"{run}: ended with code {code}")

    @contextmanager
    def _demo(self, name: str, *settings: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        options = [f"--set={setting}" for setting in (f"logging.root={self.runs}", *settings)]
        command = [sys.executable, "-m", "axpo.cli", "train", RECIPE, "--run", name, *options]
        with (self.runs / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.checkout, env=self._environment(), stdout=output, stderr=output
            )
            try:
                yield process, self.runs / name
            finally:
                # Ray's processes end with the one that started them.
                process.kill()
                process.wait()

    def _environment(self) -> dict[str, str]:
        # Also in the processes of Ray and vLLM: before what is installed.
        return os.environ | {"PYTHONPATH": str(self.checkout)}

    def _output(self, *arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=self.checkout, env=self._environment(), capture_output=True, check=True
        )
        return done.stdout.decode()


def starts(turns: int) -> list[Entry]:
    """Return `start_seconds_vs_before`, from so many turns after a warm-up."""
    with _both() as (before, now):
        seconds = medians({"before": before.start, "now": now.start}, turns)
    detail = (
        f"from the command to the first question of `axpo train demo`: {seconds['now']:.1f} s "
        f"against {seconds['before']:.1f} s at {BEFORE}; medians of {turns} turns after a warm-up"
    )
    ratio = seconds["now"] / seconds["before"]
    return [at_most("start_seconds_vs_before", ratio, 0.55, "x", detail)]


def demos(turns: int) -> list[Entry]:
    """Return `demo_seconds_vs_before`, from so many turns."""
    with _both() as (before, now):
        seconds = interleaved(turns, before=before.demo, now=now.demo)
    medians_of = {name: statistics.median(values) for name, values in seconds.items()}
    detail = (
        f"the whole `axpo train demo`: {medians_of['now']:.0f} s against "
        f"{medians_of['before']:.0f} s at {BEFORE}; medians of {turns} turns. The start model is "
        "not evaluated now: its numbers come with it"
    )
    ratio = medians_of["now"] / medians_of["before"]
    return [at_most("demo_seconds_vs_before", ratio, 0.6, "x", detail)]


@contextmanager
def _both() -> Iterator[tuple[Code, Code]]:
    """Yield the code of before and that of now, each with a folder for its runs."""
    with tempfile.TemporaryDirectory(prefix="axpo-start-") as folder:
        root = Path(folder)
        worktree = root / "before"
        _git("worktree", "add", "--detach", str(worktree), BEFORE)
        try:
            both = []
            for name, checkout in (("runs-before", worktree), ("runs-now", HERE)):
                (root / name).mkdir()
                both.append(Code(checkout, root / name))
                both[-1].check()
            yield both[0], both[1]
        finally:
            _git("worktree", "remove", "--force", str(worktree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(HERE), *arguments], check=True, capture_output=True)


def _first_question(log: Path, process: subprocess.Popen[bytes], until: float) -> float:
    """Return when a run asked its first question, in seconds since the epoch.

    Raises:
        RuntimeError: it ended before.
        TimeoutError: it has not done so in time.
    """
    while time.time() < until:
        events = ledger.read(log) if log.exists() else []
        asked = [event["t"] for event in events if event["event"] == "dispatched"]
        if asked:
            return float(asked[0])
        if process.poll() is not None:
            raise RuntimeError(f"{log}: the run ended with code {process.returncode}")
        time.sleep(0.2)
    raise TimeoutError(f"{log}: no question within {FIRST_QUESTION_S:g} s")
