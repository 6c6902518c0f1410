"""Runs as a training would leave them, made of scripted rollouts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from axpo.record.ledger import Ledger
from axpo.record.run import RunDirectory
from axpo.record.set_aside import HELD_OUT
from axpo.record.summary import write_summary
from learner.credit import credit
from rollout_workers.trajectory import Group, RolloutStats, Trajectory
from tests.axpo.helpers import TOKENS, decode, direct, group, policy, resample, zooming
from tests.axpo.record.helpers import NUMBERS

HOSTILE = (
    "<script>window.hacked = 1</script>"
    "<img src=x onerror='window.hacked = 1'>"
    "\"'><svg onload=window.hacked=1>{{ 7 * 7 }}"
    "<a href='javascript:window.hacked=1'>go</a></textarea></style>"
)

ADDRESSES = (
    "/",
    "/compare",
    "/compare?left=0.held-out.0.1&right=1.held-out.12.1",
    "/r/1",
    "/r/1/groups",
    "/r/1/groups?q=script",
    "/r/1/groups/training/3/0",
    "/r/1/groups/training/3/1",
    "/r/1/held-out",
    "/r/1/timeline",
    "/r/1/faults",
    "/r/1/logs",
)
"""One or more of each kind of page, if the runs of the viewer are `a` and `hostile`."""


def timed(trajectory: Trajectory, started: float, seconds: float) -> Trajectory:
    calls = len(trajectory.segments) > 1
    stats = RolloutStats(
        started=started,
        seconds=seconds,
        tool_seconds=seconds / 4 * calls,
        tool_spans=((seconds / 2, seconds * 3 / 4),) if calls else (),
        tool_calls=int(calls),
        tools=("image_zoom_in",) if calls else (),
    )
    return replace(trajectory, stats=stats)


def photo(seed: int) -> np.ndarray:
    """A gradient with a few coloured squares."""
    random = np.random.default_rng(seed)
    image = np.zeros((96, 160, 3), np.uint8)
    image[..., 0] = np.linspace(90, 220, 160, dtype=np.uint8)
    image[..., 2] = np.linspace(200, 120, 96, dtype=np.uint8)[:, None]
    for _ in range(4):
        y, x = random.integers(0, 70), random.integers(0, 130)
        image[y : y + 18, x : x + 24] = random.integers(0, 255, 3)
    return image


def forked(question: str, step: int) -> Group:
    """A group whose first rollout was forked twice, and recovered by the first fork."""
    source = timed(zooming(0, 0.0, (50, 80, 430, 600), question), 100.0, 2.0)
    made = resample(source, [((300, 100, 800, 900), 1.0, 80), ((0, 500, 400, 990), 0.0, 80)])
    continuations = tuple(timed(c, 102.0 + i, 1.0) for i, c in enumerate(made.continuations))
    others = [
        timed(direct(1, 1.0, question), 100.1, 0.7),
        timed(direct(2, 0.0, question), 100.2, 0.6),
    ]
    whole = group([source, *others], [replace(made, continuations=continuations)], question)
    return pictured(whole, step)


def answered(question: str, text: str, rewards: tuple[float, ...], seed: int = 0) -> Group:
    """A group of rollouts of one turn that say a text."""
    rollouts = []
    for number, reward in enumerate(rewards):
        segments = (policy(f"look</think>{text}<|im_end|>", 0.97 if number else 0.6),)
        one = replace(direct(number, reward, question), segments=segments, answer=text)
        rollouts.append(timed(one, 100.0 + number / 10, 1.0))
    return pictured(group(rollouts, question=question), seed)


def pictured(made: Group, seed: int) -> Group:
    asked = replace(made.question, images=(photo(seed),), info={"family": "digits"})
    return replace(made, question=asked)


def write_run(
    root: Path, name: str = "a", *, steps: int = 12, text: str = "seven", ended: bool = True
) -> Path:
    """Write a run with forks, two evaluations, timelines and faults; return its directory."""
    recipe = {
        "name": name,
        "algorithm": "axpo",
        "steps": steps,
        "learner": {"lr": 1e-5 * len(name)},
    }
    with RunDirectory.create(name, recipe, root) as run:
        before = [answered(f"held-{i}", text, (0.0, 0.0), i) for i in range(3)]
        after = [answered(f"held-{i}", text, (1.0, float(i > 0)), i) for i in range(3)]
        run.log_metrics(0, {"eval/pass1": 0.25})
        run.save_held_out(0, before, decode)
        for step in range(1, steps + 1):
            groups = [
                forked(f"train-{step}", step),
                answered(f"train-{step}-b", f"{text} {step}", (1.0, 0.0), step),
            ]
            run.log_metrics(step, numbers(step))
            run.save_groups(step, groups, decode, credit(groups, TOKENS))
            run.save_timeline(step, groups)
        run.log_metrics(steps, {"eval/pass1": 0.75})
        run.save_held_out(steps, after, decode)
        run.log_event("start", step=0)
        run.log_event(HELD_OUT, step=0, reason="val.jsonl, row 2: images: none")
        ledger = Ledger(run.path / "rollouts.jsonl")
        ledger.log("unusable", question="z", reason=f"row 3: {text}")
        ledger.log("worker lost", worker=1, why="killed by signal 9")
        (run.path / "axpo.log").write_text(f"12:00:00 step 1 \x1b[31m{text}\x1b[0m\n")
        (run.path / "logs").mkdir()
        (run.path / "logs" / "rank-0.log").write_text("loaded\n" * 40_000 + "the last line\n")
        if ended:
            write_summary(run.path, NUMBERS)
    return run.path


def numbers(step: int) -> dict[str, float]:
    """Metrics of a step that look like those of a run."""
    wave = math.sin(step / 3) / 20
    return {
        "pass1": 0.4 + step / 60 + wave,
        "tool_use_rate": 0.3 + wave,
        "tool_all_wrong_rate": 0.3 - wave,
        "recovery_rate": 0.2 + wave,
        "kl": 0.01 * step,
        "grad_norm": 1.0 + wave,
        "time/rollout": 2.0 + wave,
        "time/learn": 1.0,
    }
