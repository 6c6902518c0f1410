"""Make the embedded model: from nothing to a trained model folder with its model card."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

from rich.console import Console

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.evaluation.held_out import evaluate_model
from axpo.record.summary import label
from axpo.session import ray_session
from axpo.sft.embedded import CHAT_TEMPLATE, build
from axpo.sft.fine_tune import fine_tune, tool_schemas
from axpo.tasks import Task

EXAMPLES = 1000  # of each kind, whose words the tokenizer learns
REPEATS = 20  # of template, system text and tool schemas, among these words


def build_embedded(recipe: Recipe, console: Console) -> Path:
    """Make the embedded model and write it to `sft.output`.

    That is: tokenizer and random weights, SFT stages, measurements, model card.

    Args:
        recipe: its `sft` section has the stages; its `model` is not read.
        console: shows the progress.

    Returns:
        The folder of the model.

    Raises:
        AxpoError: the recipe has no SFT section, or what `fine_tune` raises.
    """
    if recipe.sft is None:
        raise AxpoError("sft: required, but not given (the stages that train the embedded model)")
    task = recipe.task.load()
    with ray_session(recipe), tempfile.TemporaryDirectory() as scratch:
        texts = _vocabulary_texts(recipe, task)
        start = build(Path(scratch) / "random", texts, recipe.seed)
        folder = fine_tune(recipe.model_copy(update={"model": str(start)}), console)
        numbers = evaluate_model(recipe, str(folder)).numbers
        card = _card(recipe, folder, numbers, questions=len(task.held_out()))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _vocabulary_texts(recipe: Recipe, task: Task) -> list[str]:
    """Return what the tokenizer is trained on: the chat's own texts, and many examples."""
    assert recipe.sft is not None
    schemas = [json.dumps(schema) for schema in tool_schemas(recipe)]
    texts = [CHAT_TEMPLATE, task.system or "", *schemas] * REPEATS
    # A kind is drawn by the task of a stage that has it: the recipe's may have no room for it.
    tasks: dict[str, Task] = {}
    for stage in recipe.sft.stages:
        for kind in stage.mix:
            tasks.setdefault(kind, recipe.stage_task(stage).load())
    # In a fixed order, so that the same recipe gives the same tokenizer.
    for kind in sorted(tasks):
        for index in range(EXAMPLES):
            question, turns, _ = tasks[kind].example(kind, index)
            texts.append(question.text)
            texts += [turn if isinstance(turn, str) else turn[0] for turn in turns]
    return texts


def _card(recipe: Recipe, folder: Path, numbers: dict[str, float], *, questions: int) -> str:
    """Return the model card: what it is, how it was made, what it scored when it was made."""
    evaluation = recipe.evaluation
    rows = []
    for name, value in numbers.items():
        if name != "dropped":
            rows.append(f"| {label(name)} | {value:.1%} |")
    table = "\n".join(rows)
    return f"""# A tiny Qwen3-VL that reads small digits

The classes of Qwen3-VL (`Qwen3VLForConditionalGeneration`, its processor, a BPE tokenizer with
Qwen's special tokens, the chat format of Qwen3-VL-Thinking) with {_parameters(folder) / 1e6:.2f}M
parameters in bfloat16, so that every part of AXPO runs on a CPU without a download. It knows one
task, `small_digit`. Its teacher is imprecise: it zooms on about 30 % of its traces and mostly
misses, which is the Thinking-Acting Gap in small. The model is good for nothing else.

Made by `axpo model build` (`make model`, recipe `deploy/recipes/embedded.yaml`) from random
weights:
{_stage_list(recipe)}

Data: scikit-learn's UCI handwritten digits and its two sample photographs. Digits of the held-out
questions are never trained on. Licence: Apache-2.0, like the project.

Measured when it was built, on {questions} held-out questions x {evaluation.samples} samples at
temperature {evaluation.temperature:g}:

| | |
|---|---|
{table}
"""


def _parameters(folder: Path) -> int:
    """Return how many numbers the weights of a model folder hold."""
    from safetensors import safe_open

    count = 0
    # Shapes are in the file's header; no weight is read.
    with safe_open(folder / "model.safetensors", "np") as weights:
        for name in weights.keys():  # noqa: SIM118  (`weights` is no mapping)
            count += math.prod(weights.get_slice(name).get_shape())
    return count


def _stage_list(recipe: Recipe) -> str:
    stages = recipe.sft.stages if recipe.sft else ()
    lines = [
        f"- {stage.steps} updates of {stage.batch_size} examples, lr {stage.lr:g}: {stage.mix}"
        for stage in stages
    ]
    return "\n".join(lines)
