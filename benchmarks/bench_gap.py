"""How far the learner's probabilities are from the engine's, over short runs.

The measure is KL(engine || learner) on the sampled tokens, while weights are updated each step. In
float32 the questions are the demo's. In bfloat16 they stand behind a system message of more than
2,000 tokens: an error of positions shows on long sequences only.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from axpo.record.records import group_from_json
from axpo.record.run import RunDirectory
from axpo.tasks.embedded.small_digit import SmallDigitConfig
from axpo.tasks.task import Task
from benchmarks.cluster import local_ray
from benchmarks.recorded import MODEL, RECIPE, run_recipe
from benchmarks.result import Entry, at_most
from learner.config import LearnerConfig
from learner.credit import TrainItem, credit
from learner.learner import Learner
from rollout_workers.chat import Chat
from rollout_workers.trajectory import Floats

STEPS = 20
SMALL = (
    f"steps={STEPS}",
    "questions_per_step=2",
    "rollout.n=4",
    "resampler.k=2",
    "checkpoint_every=1000",
)
SHORTEST, LONGEST = 2000, 4096
"""Tokens of a sequence in bfloat16."""
SYSTEM_CHARACTERS = 3600
TEXTS = ("docs/method.md", "README.md")


def measure() -> Iterator[Entry]:
    """Yield the entries `engine_gap_kl_bf16` and `engine_gap_kl_fp32`."""
    yield in_bfloat16()
    yield in_float32()


def in_float32() -> Entry:
    """Measure the gap over a run of the demo."""
    with tempfile.TemporaryDirectory() as root:
        settings = (*SMALL, "task.held_out=4", "logging.groups_kept=0")
        run = RunDirectory.open(run_recipe(Path(root), "gap", *settings))
        largest, detail = _gap(run)
    return at_most("engine_gap_kl_fp32", largest, 1e-4, "nats", detail)


def in_bfloat16() -> Entry:
    """Measure the gap over a run whose sequences have more than 2,000 tokens."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        model = _with_more_positions(folder / "model")
        settings = (
            *SMALL,
            f"model={model}",
            "rollout.engine.dtype=bfloat16",
            "learner.dtype=bfloat16",
            f"rollout.max_context_tokens={LONGEST}",
            # Both groups of the first step.
            "logging.groups_kept=2",
        )
        recipe = _recipe_behind_text(folder / "recipe.yaml")
        run = RunDirectory.open(run_recipe(folder, "gap", *settings, recipe=recipe))
        largest, detail = _gap(run)
        detail += f"; {_against_float32(run, str(model))}"
    return at_most("engine_gap_kl_bf16", largest, 1e-3, "nats", detail)


def behind_text() -> Task:
    """Return the demo's task behind a long system message; the recipe names this function."""
    task = SmallDigitConfig(digit=10, border=11, grid=8, frames=(1, 2), held_out=4).load()
    text = "\n".join(Path(name).read_text(encoding="utf-8") for name in TEXTS)
    task.system = text[:SYSTEM_CHARACTERS]
    return task


def _gap(run: RunDirectory) -> tuple[float, str]:
    """Return the largest KL of a run's steps, and what is to be said of it."""
    rows = run.metrics()
    kls = [row["engine_kl"] for row in rows if row.get("engine_kl") is not None]
    largest = [row["logprob_gap_max"] for row in rows if row.get("logprob_gap_max") is not None]
    detail = (
        f"largest of {len(kls)} steps' means over tokens (k3), weights updated each step; "
        f"largest |gap| of a token {max(largest):.2g}"
    )
    return max(kls), detail


def _against_float32(run: RunDirectory, model: str) -> str:
    """Say how far engine and learner are from a learner in float32, before the first update.

    All three have the same weights then. They are compared on the tokens that the engine sampled.
    """
    groups = [group_from_json(record, run.images) for record in run.groups(1)]
    items = credit(groups, Chat.load(model).tokens)
    trajectories = [item.trajectory for item in items]
    shortest = min(len(t.prompt_ids) + len(t.response_ids) for t in trajectories)
    if shortest < SHORTEST:
        raise ValueError(f"a sequence has {shortest} tokens; expected {SHORTEST} or more")
    engine = np.concatenate([item.trajectory.logprobs[item.mask] for item in items])
    with local_ray():
        exact, rounded = (_logprobs(model, dtype, items) for dtype in ("float32", "bfloat16"))
    return (
        f"sequences of {shortest} tokens or more; in the first step the |gap| of a token is on "
        f"average {_mean_gap(engine, rounded):.2g} from engine to learner, "
        f"{_mean_gap(engine, exact):.2g} from engine to float32, "
        f"{_mean_gap(rounded, exact):.2g} from learner to float32"
    )


def _logprobs(model: str, dtype: str, items: Sequence[TrainItem]) -> Floats:
    """Return the log-probabilities of all trained tokens under a learner of some type."""
    config = LearnerConfig.model_validate({"ranks": 1, "kl_beta": 0.0, "dtype": dtype})
    learner = Learner(model, config)
    try:
        values = learner.logprobs(items)
    finally:
        learner.shutdown()
    return np.concatenate([of[item.mask] for of, item in zip(values, items, strict=True)])


def _mean_gap(one: Floats, other: Floats) -> float:
    return float(np.abs(one.astype(np.float64) - other).mean())


def _with_more_positions(folder: Path) -> Path:
    """Copy the embedded model, with a config that allows LONGEST positions."""
    shutil.copytree(MODEL, folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = LONGEST
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


def _recipe_behind_text(file: Path) -> str:
    """Write the demo's recipe with `behind_text` as its task."""
    recipe = yaml.safe_load(Path(RECIPE).read_text(encoding="utf-8"))
    recipe["task"] = {"kind": "custom", "path": f"{__name__}:{behind_text.__name__}"}
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(file)
