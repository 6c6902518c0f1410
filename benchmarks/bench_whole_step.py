"""Whole GRPO steps beside TRL's: rollouts with tool calls, update, and the policy to the engines.

Model, questions, tool, rollouts, KL term and cores are the same. The policy is frozen by a tiny
learning rate, so every step samples from the same model on both sides.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from axpo.config import load_recipe
from benchmarks.recorded import RECIPE, run_recipe
from benchmarks.result import Entry, at_least

ROUNDS = 2
"""Runs of each, in turns; every other round the other one begins."""
STEPS = 5
WARM_UP = 1
"""Steps of each run that do not count: compilation, lazy imports."""
PROCESSES = 2
"""TRL's, one thread each: with a single process its steps took twice as long on two cores."""
DEADLINE_S = 900
SETTINGS = (
    "algorithm=grpo",
    f"steps={STEPS}",
    "learner.lr=1e-9",
    # TRL's own default. With a KL term both sides compute a reference, too.
    "learner.kl_beta=0",
    "task.held_out=4",
    "evaluation.start=false",
)


@dataclass(frozen=True)
class Seconds:
    """A step: all of it, and its generation. Tokens are those that the policy generated."""

    step: float
    generation: float
    tokens: float


OURS = ("rollout.engine.enforce_eager=false",)
"""A compiled engine takes longer to start, and its steps take a tenth less time."""


def measure() -> list[Entry]:
    """Return the entry `whole_step_vs_trl`."""
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    for number in range(ROUNDS):
        sides = [(ours, run_ours), (theirs, run_trl)]
        for steps, run in reversed(sides) if number % 2 else sides:
            with tempfile.TemporaryDirectory() as folder:
                steps += run(Path(folder))[WARM_UP:]
    mine, trl = median(ours), median(theirs)
    detail = (
        f"{_conditions()}; medians of {len(ours)} steps: "
        f"TRL {metadata.version('trl')} ({PROCESSES} processes of one thread, transformers' "
        f"generate) {told(trl)}; ours (compiled engine) {told(mine)}"
    )
    return [at_least("whole_step_vs_trl", trl.step / mine.step, 4, "x", detail)]


def run_ours(folder: Path) -> list[Seconds]:
    """Return the steps of a run of our own."""
    lines = (run_recipe(folder, "ours", *SETTINGS, *OURS) / "metrics.jsonl").read_text("utf-8")
    steps = []
    for row in map(json.loads, lines.splitlines()):
        # The first line is the start's; an evaluation adds a line without an update.
        if "time/learn" in row:
            generation = row["time/rollout"]
            whole = generation + row["time/learn"] + row["time/sync"]
            steps.append(Seconds(whole, generation, row["generated_tokens"]))
    return steps


def run_trl(folder: Path) -> list[Seconds]:
    """Return the steps of a run of TRL's; raise RuntimeError with its output if it fails."""
    file = folder / "steps.jsonl"
    launcher = (sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}")
    changes = [f"--set={setting}" for setting in SETTINGS]
    done = subprocess.run(
        [*launcher, "-m", "benchmarks.trl_run", RECIPE, str(file), *changes],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"TRL failed: {done.stdout[-1000:]}{done.stderr[-3000:]}")
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    # The first process has its share of the rollouts; the others' are as large.
    return [_of_process(row) for row in rows]


def _of_process(row: dict[str, Any]) -> Seconds:
    return Seconds(row["seconds"], row["generation"], PROCESSES * row["tokens"])


def median(steps: list[Seconds]) -> Seconds:
    """Return the median of each number."""
    return Seconds(
        statistics.median(step.step for step in steps),
        statistics.median(step.generation for step in steps),
        statistics.median(step.tokens for step in steps),
    )


def told(step: Seconds) -> str:
    """Return a step in words."""
    rest = step.step - step.generation
    return (
        f"{step.step:.2f} s ({step.generation:.2f} generation, {rest:.2f} learning and sync, "
        f"{step.tokens:,.0f} tokens)"
    )


def _conditions() -> str:
    recipe = load_recipe(RECIPE, SETTINGS)
    return (
        f"GRPO, {recipe.questions_per_step} questions x {recipe.rollout.n} with the zoom tool, "
        f"kl_beta {recipe.learner.kl_beta:g} on both sides"
    )
