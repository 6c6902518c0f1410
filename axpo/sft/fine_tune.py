"""Supervised fine-tuning on a task's own examples, with the learner that reinforcement learning uses, and the embedded model's build."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from axpo.config import Recipe, SFTStage
from axpo.errors import AxpoError
from axpo.evaluation.held_out import evaluate_model
from axpo.record.summary import label
from axpo.sft.demonstrations import Demonstrations, Shown
from axpo.tasks import Task, load_task
from learner.credit import TrainItem, sft_items


def fine_tune(recipe: Recipe, console: Console) -> Path:
    """Run the recipe's SFT stages on its model and write `sft.output`. Needs a Ray session.

    Raises AxpoError where the recipe has no SFT section, the output exists or the task lacks an example kind.
    """
    from axpo.session import local_path
    from learner.learner import Learner

    if recipe.sft is None:
        raise AxpoError("sft: required, but not given (the stages of supervised fine-tuning)")
    output = Path(recipe.sft.output)
    if output.exists():
        raise AxpoError(f"sft.output={str(output)!r} already exists")
    tasks = [load_task(recipe.stage_task(stage)) for stage in recipe.sft.stages]
    for stage, task in zip(recipe.sft.stages, tasks, strict=True):
        for kind in () if stage.data else stage.mix:
            try:
                task.example(kind, 0)
            except KeyError as error:
                raise AxpoError(f"sft.stages.mix: no examples of kind {error.args[0]}") from None
    model = local_path(recipe.model)
    schemas = tool_schemas(recipe)
    folders = _stage_folders(recipe, model)
    for number, (stage, task, folder) in enumerate(
        zip(recipe.sft.stages, tasks, folders, strict=True), 1
    ):
        if not folder.exists():
            config = recipe.learner.model_copy(
                update={
                    "lr": stage.lr,
                    "warmup_steps": stage.warmup_steps,
                    "schedule": "cosine",
                    "total_steps": stage.steps,
                    "betas": (0.9, 0.98),
                }
            )
            learner = Learner(model, config, seed=recipe.seed, serving=recipe.serving)
            try:
                _stage(recipe, task, stage, number, learner, schemas, model, console)
                learner.save(str(folder), hf_dtype="bfloat16" if number == len(folders) else None)
            finally:
                learner.shutdown()
        model = str(folder / "hf")
    shutil.copytree(model, output)
    if not recipe.sft.keep_stages:
        for folder in folders:
            shutil.rmtree(folder)
    return output


def _stage_folders(recipe: Recipe, model: str) -> list[Path]:
    """Where the model after each stage lies, named by all that it depends on: an interrupted run goes on at the stage it was in."""
    assert recipe.sft is not None
    digest = hashlib.sha256(
        json.dumps(
            [
                recipe.seed,
                recipe.learner.model_dump(mode="json"),
                recipe.task.model_dump(mode="json"),
            ]
        ).encode()
    )
    for file in sorted(path for path in Path(model).iterdir() if path.is_file()):
        with file.open("rb") as start:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + start.read(1 << 20))
    folders = []
    for number, stage in enumerate(recipe.sft.stages, 1):
        digest.update(stage.model_dump_json().encode())
        last = "-last" if number == len(recipe.sft.stages) else ""
        folders.append(
            Path(recipe.logging.root) / "sft" / f"{number}-{digest.hexdigest()[:12]}{last}"
        )
    return folders


def _stage(
    recipe: Recipe,
    task: Task,
    stage: SFTStage,
    number: int,
    learner: Any,
    schemas: list[dict[str, Any]],
    model: str,
    console: Console,
) -> None:
    from rollout_workers.chat import Chat

    chat = Chat.load(model)
    kinds, shares = list(stage.mix), list(stage.mix.values())
    data = Demonstrations(stage.data, chat, recipe.seed) if stage.data else None

    def kind_of(step: int) -> str:
        # One kind a batch: batches of one length waste no padding.
        return random.Random(f"{recipe.seed}/{number}/{step}").choices(kinds, shares)[0]

    def batch(step: int) -> list[TrainItem]:
        kind = kind_of(step)
        pairs = []
        for index in range(step * stage.batch_size, (step + 1) * stage.batch_size):
            if data is not None:
                pairs.append(data.example(index))
                continue
            question, turns, tools = task.example(kind, (number << 32) + index)
            scripted: Sequence[str | Sequence[Shown]] = [
                turn if isinstance(turn, str) else [Shown(*turn)] for turn in turns
            ]
            pairs.append(
                (
                    question,
                    chat.trajectory(
                        question, schemas if tools else [], task.system if tools else None, scripted
                    ),
                )
            )
        return sft_items(pairs)

    with Progress(console=console) as bar, ThreadPoolExecutor(1) as ahead:
        line = bar.add_task(f"sft stage {number}", total=stage.steps)
        following = ahead.submit(batch, 0)
        losses: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step in range(stage.steps):
            items = following.result()
            following = ahead.submit(batch, step + 1)
            losses[kind_of(step)].append(learner.fine_tune(items)["loss"])
            recent = ", ".join(
                f"{kind} {sum(past[-10:]) / len(past[-10:]):.3f}"
                for kind, past in losses.items()
                if past
            )
            bar.update(line, completed=step + 1, description=f"sft stage {number} loss: {recent}")
            if (step + 1) % 25 == 0 and not console.is_terminal:
                console.print(
                    f"sft stage {number} step {step + 1}/{stage.steps} loss: {recent}",
                    highlight=False,
                )


def tool_schemas(recipe: Recipe) -> list[dict[str, Any]]:
    """The schemas that the recipe's tools show to the policy."""
    from axpo.session import await_tools, tool_servers

    with tool_servers(recipe.tools) as tools:
        await_tools(tools)
        return asyncio.run(tools.schemas())


def build_embedded(recipe: Recipe, console: Console) -> Path:
    """The embedded model from nothing to `sft.output`: tokenizer and random weights, SFT stages, measurements, model card."""
    from axpo.session import ray_session
    from axpo.sft.embedded import CHAT_TEMPLATE, build

    if recipe.sft is None:
        raise AxpoError("sft: required, but not given (the stages that train the embedded model)")
    task = load_task(recipe.task)
    with ray_session(recipe), tempfile.TemporaryDirectory() as scratch:
        kinds = sorted({kind for stage in recipe.sft.stages for kind in stage.mix})
        texts = [
            CHAT_TEMPLATE,
            task.system or "",
            *(json.dumps(schema) for schema in tool_schemas(recipe)),
        ] * 20
        for kind in kinds:
            for index in range(1000):
                question, turns, _ = task.example(kind, index)
                texts += [
                    question.text,
                    *(turn if isinstance(turn, str) else turn[0] for turn in turns),
                ]
        start = build(Path(scratch) / "random", texts, recipe.seed)
        folder = fine_tune(recipe.model_copy(update={"model": str(start)}), console)
        (folder / "README.md").write_text(
            _card(recipe, folder, evaluate_model(recipe, str(folder))), encoding="utf-8"
        )
    return folder


def _card(recipe: Recipe, folder: Path, numbers: dict[str, float]) -> str:
    """The model card: what it is, how it was made, what it scored when it was made."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (no mapping)
    stages = (
        "\n".join(
            f"- {s.steps} updates of {s.batch_size} examples, lr {s.lr:g}: {s.mix}"
            for s in recipe.sft.stages
        )
        if recipe.sft
        else ""
    )
    rows = "\n".join(
        f"| {label(name)} | {value:.1%} |" for name, value in numbers.items() if name != "dropped"
    )
    samples, questions = recipe.evaluation.samples, len(load_task(recipe.task).held_out())
    return f"""# A tiny Qwen3-VL that reads small digits

The classes of Qwen3-VL (`Qwen3VLForConditionalGeneration`, its processor, a BPE tokenizer with Qwen's special tokens, the chat
format of Qwen3-VL-Thinking) with {parameters / 1e6:.2f}M parameters in bfloat16, so that every part of AXPO runs on a CPU without a
download. It knows one task, `small_digit`, from an imprecise teacher that zooms on about 30 % of its traces and mostly misses:
the Thinking-Acting Gap in small. It is good for nothing else.

Made by `axpo model build` (`make model`, recipe `deploy/recipes/embedded.yaml`) from random weights:
{stages}

Data: scikit-learn's UCI handwritten digits and its two sample photographs; digits of the held-out questions are never trained on.
Licence: Apache-2.0, like the project.

Measured when it was built, on {questions} held-out questions x {samples} samples at temperature {recipe.evaluation.temperature:g}:

| | |
|---|---|
{rows}
"""
