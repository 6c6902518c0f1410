"""Groups of rollouts for the learner's benchmarks.

A real run of the demo's recipe records them, with resamples.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from axpo.record.records import group_from_json
from axpo.record.run import RunDirectory
from learner.credit import TrainItem, credit
from rollout_workers.chat import Chat
from rollout_workers.trajectory import Group, Pixels, Question, pixels

RECIPE = "deploy/recipes/demo.yaml"
MODEL = "axpo/models/qwen3-vl-tiny"
PATCH = 32
"""Pixels of a side of one image token: 16-pixel patches, merged 2 x 2."""


def run_recipe(root: Path, name: str, *settings: str, recipe: str = RECIPE) -> Path:
    """Train with a recipe and some changes, and return the run directory.

    Args:
        root: the folder of the run directory.
        name: of the run.
        settings: fields of the recipe to change, as KEY=VALUE.
        recipe: file of the recipe; the demo's by default.

    Raises:
        RuntimeError: the run failed; with the end of its log.
    """
    command = [sys.executable, "-m", "axpo.cli", "train", recipe, "--run", name]
    changes = [f"--set={setting}" for setting in (f"logging.root={root}", *settings)]
    # A process of its own: it ends with its Ray, its engines and its ranks.
    done = subprocess.run(
        [*command, *changes], capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return root / name


# All benchmarks of a command share one run.
@functools.cache
def recorded() -> tuple[Group, ...]:
    """Return the groups of one step of the demo: 16 questions, N = 8, K = 4."""
    settings = ("steps=1", "task.held_out=4", "logging.groups_kept=1000")
    with tempfile.TemporaryDirectory() as root:
        run = RunDirectory.open(run_recipe(Path(root), "record", *settings))
        return tuple(group_from_json(record, run.images) for record in run.groups(1))


def train_items(questions: int) -> list[TrainItem]:
    """Return the train items of that many recorded groups.

    Those with resamples come first: they hold every kind of item.
    """
    # The sort is stable: the rest keeps the run's order.
    groups = sorted(recorded(), key=lambda group: -len(group.resamples))
    return credit(groups[:questions], Chat.load(MODEL).tokens)


def with_large_images(
    items: Sequence[TrainItem], folder: Path, tokens: int = 1024
) -> tuple[list[TrainItem], str]:
    """Return items with large images, and a model that accepts them.

    Args:
        items: the items; the images of their questions are scaled.
        folder: gets a copy of the embedded model.
        tokens: of each image.
    """
    side = int(tokens**0.5) * PATCH
    model = folder / "model"
    shutil.copytree(MODEL, model)
    for file in model.glob("*processor_config.json"):
        _allow_pixels(file, side * side)
    scaled: dict[str, Question] = {}
    for item in items:
        question = item.question
        if question.id not in scaled:
            images = tuple(_scaled(pixels(image), side) for image in question.images)
            scaled[question.id] = replace(question, images=images)
    return [replace(item, question=scaled[item.question.id]) for item in items], str(model)


def _allow_pixels(processor: Path, pixels: int) -> None:
    """Raise the largest image that a processor's configuration allows."""
    config = json.loads(processor.read_text())
    sizes = config.get("image_processor", config)
    sizes["size"] = {"shortest_edge": sizes["size"]["shortest_edge"], "longest_edge": pixels}
    processor.write_text(json.dumps(config))


def _scaled(image: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((side, side)))
