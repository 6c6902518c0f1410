"""Groups of rollouts for the learner's benchmarks: recorded by a real run of the demo's recipe, forks included."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RECIPE = "deploy/recipes/demo.yaml"
MODEL = "axpo/models/qwen3-vl-tiny"


def run_recipe(root: Path, name: str, *settings: str) -> Path:
    """Train with the demo's recipe and some changes; returns the run directory. Raises RuntimeError with the log's end."""
    command = [sys.executable, "-m", "axpo.cli", "train", RECIPE, "--run", name]
    done = subprocess.run(
        [*command, *(f"--set={setting}" for setting in (f"logging.root={root}", *settings))],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return root / name


@functools.cache
def recorded() -> tuple[Any, ...]:
    """The groups of one step of the demo: 16 questions, N = 8, K = 4."""
    from axpo.record.records import trajectory_from_json
    from axpo.record.run import RunDirectory
    from rollout_workers.trajectory import Group, Question, Resample

    with tempfile.TemporaryDirectory() as root:
        path = run_recipe(
            Path(root), "record", "steps=1", "task.held_out=4", "logging.groups_kept=1000"
        )
        run = RunDirectory.open(path)
        groups = []
        for record in run.groups(1):
            asked = record["question"]
            images = tuple(run.images.load(name) for name in asked["images"])
            rollouts = tuple(trajectory_from_json(r, run.images) for r in record["rollouts"])
            resamples = tuple(
                Resample(
                    r["source"],
                    r["prefix_tokens"],
                    tuple(trajectory_from_json(c, run.images) for c in r["continuations"]),
                )
                for r in record["resamples"]
            )
            groups.append(
                Group(
                    Question(asked["id"], asked["text"], images, asked["answer"]),
                    rollouts,
                    0,
                    resamples,
                )
            )
    return tuple(groups)


def train_items(questions: int) -> list[Any]:
    """The train items of that many recorded groups, those with forks first: they hold every kind of item."""
    from learner.credit import credit
    from rollout_workers.chat import Chat

    groups = sorted(recorded(), key=lambda group: -len(group.resamples))
    return credit(groups[:questions], Chat.load(MODEL).tokens)


def with_large_images(items: list[Any], folder: Path, tokens: int = 1024) -> tuple[list[Any], str]:
    """The items with their questions' images scaled to `tokens` tokens each, and a copy of the model that accepts them."""
    from dataclasses import replace

    side = int(tokens**0.5) * 32  # 16-pixel patches, merged 2 x 2
    model = folder / "model"
    shutil.copytree(MODEL, model)
    for file in model.glob("*processor_config.json"):
        config = json.loads(file.read_text())
        sizes = config.get("image_processor", config)
        sizes["size"] = {
            "shortest_edge": sizes["size"]["shortest_edge"],
            "longest_edge": side * side,
        }
        file.write_text(json.dumps(config))
    scaled: dict[str, Any] = {}
    for item in items:
        question = item.question
        if question.id not in scaled:
            images = tuple(
                np.asarray(Image.fromarray(image).resize((side, side))) for image in question.images
            )
            scaled[question.id] = replace(question, images=images)
    return [replace(item, question=scaled[item.question.id]) for item in items], str(model)
