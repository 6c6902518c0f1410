"""Fine-tune a model in stages, with the learner that reinforcement learning uses.

A stage trains on the task's own examples (`sft.stages[].mix`) or on rows of a data set
(`sft.stages[].data`). The model after each stage is kept until the last one is done, so an
interrupted run goes on at the stage it was in.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from axpo.config import Recipe, SFTStage
from axpo.errors import AxpoError
from axpo.placement import Parts
from axpo.session import await_tools, local_path, places, tool_servers
from axpo.sft.batches import Batches, Examples, RowExamples, TaskExamples
from axpo.sft.check import demonstrations
from axpo.tasks import Task
from axpo.texts import printable
from learner.ahead import made_ahead
from learner.config import LearnerConfig
from learner.learner import Learner, Start
from rollout_workers.chat import Chat

PRINT_EVERY = 25  # steps between lines, if the console is no terminal
SET_ASIDE_SHOWN = 5  # rows that are named at the end of a stage
RECENT = 10  # updates that a shown loss is the mean of


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    number: int  # from 1
    settings: SFTStage
    task: Task
    folder: Path  # the model after this stage
    last: bool


def fine_tune(recipe: Recipe, console: Console) -> Path:
    """Run the recipe's SFT stages on its model and write `sft.output`. Needs a Ray session.

    Args:
        recipe: what to train, and how.
        console: shows the progress.

    Returns:
        The folder of the trained model.

    Raises:
        AxpoError: the recipe has no SFT section, the output exists, or the task lacks a kind of
            example that the recipe asks for.
    """
    if recipe.sft is None:
        raise AxpoError("sft: required, but not given (the stages of supervised fine-tuning)")
    output = Path(recipe.sft.output)
    if output.exists():
        raise AxpoError(f"sft.output={str(output)!r} already exists")
    # A mistake in a late stage is found before the first one runs.
    tasks = [recipe.stage_task(settings).load() for settings in recipe.sft.stages]
    for settings, task in zip(recipe.sft.stages, tasks, strict=True):
        _check_mix(settings, task)
    model = local_path(recipe.model)
    schemas = tool_schemas(recipe)
    stages = _stages(recipe, model, tasks)
    for stage in stages:
        # A folder that is there was completed by a run before this one.
        if not stage.folder.exists():
            _run(recipe, stage, model, schemas, console)
        model = str(stage.folder / "hf")
    shutil.copytree(model, output)
    if not recipe.sft.keep_stages:
        for stage in stages:
            shutil.rmtree(stage.folder)
    return output


def tool_schemas(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the schemas that the recipe's tools show to the policy."""
    with tool_servers(recipe.tools) as tools:
        await_tools(tools)
        return asyncio.run(tools.schemas())


def _check_mix(settings: SFTStage, task: Task) -> None:
    if settings.data:
        return
    for kind in settings.mix:
        try:
            task.example(kind, 0)
        except KeyError as error:
            raise AxpoError(f"sft.stages.mix: no examples of kind {error.args[0]}") from None


def _stages(recipe: Recipe, model: str, tasks: list[Task]) -> list[Stage]:
    """Return the stages; a stage's folder is named by all that its model depends on."""
    assert recipe.sft is not None
    start = [recipe.seed, recipe.learner.model_dump(mode="json"), recipe.task.spec()]
    digest = hashlib.sha256(json.dumps(start).encode())
    _add_model(digest, Path(model))
    root = Path(recipe.logging.root) / "sft"
    stages = []
    pairs = zip(recipe.sft.stages, tasks, strict=True)
    for number, (settings, task) in enumerate(pairs, 1):
        # The digest goes on from stage to stage: a model depends on all stages before it.
        digest.update(settings.model_dump_json().encode())
        last = number == len(recipe.sft.stages)
        # The last stage is saved in bfloat16, so a longer curriculum does not go on from it.
        ending = "-last" if last else ""
        name = f"{number}-{digest.hexdigest()[:12]}{ending}"
        stages.append(Stage(number, settings, task, root / name, last))
    return stages


def _add_model(digest: hashlib._Hash, folder: Path) -> None:
    """Add a model's files to a digest: names, sizes and the first MiB of each."""
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        title = f"{file.name} {file.stat().st_size}"
        with file.open("rb") as content:
            digest.update(title.encode() + content.read(1 << 20))


def _run(
    recipe: Recipe, stage: Stage, model: str, schemas: list[dict[str, Any]], console: Console
) -> None:
    """Train one stage and save its model."""
    config = _learner_config(recipe.learner, stage.settings)
    # Each stage has a learner of its own, so its optimizer starts afresh.
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    parts = Parts(workers=False)
    with places(recipe, parts, model, run=stage.folder.parent) as placed:
        start = Start(
            seed=recipe.seed,
            serving=recipe.serving,
            places=placed.ranks,
            network=recipe.network,
        )
        learner = Learner(model, config, start)
        try:
            batches = _batches(recipe, stage, model, schemas)
            _train(learner, batches, stage, console)
            _print_set_aside(stage, batches, console)
            learner.save(str(stage.folder), hf_dtype="bfloat16" if stage.last else None)
        finally:
            learner.shutdown()


def _learner_config(config: LearnerConfig, stage: SFTStage) -> LearnerConfig:
    changes = {
        "lr": stage.lr,
        "warmup_steps": stage.warmup_steps,
        "schedule": "cosine",
        "total_steps": stage.steps,
        "betas": (0.9, 0.98),
    }
    return config.model_copy(update=changes)


def _batches(recipe: Recipe, stage: Stage, model: str, schemas: list[dict[str, Any]]) -> Batches:
    settings, chat = stage.settings, Chat.load(model)
    examples: Examples
    if settings.data:
        examples = RowExamples(demonstrations(recipe, settings.data, chat, model))
    else:
        examples = TaskExamples(stage.task, chat, schemas, stage.number)
    seed = f"{recipe.seed}/{stage.number}"
    return Batches(examples, settings.mix, settings.batch_size, seed)


def _train(learner: Learner, batches: Batches, stage: Stage, console: Console) -> None:
    """Take the updates of a stage, and show the loss of each kind of examples."""
    title, steps = f"sft stage {stage.number}", stage.settings.steps
    losses: dict[str, list[float]] = {kind: [] for kind in batches.kinds}
    with Progress(console=console) as bar:
        line = bar.add_task(title, total=steps)
        for step, items in enumerate(made_ahead(batches.items, steps)):
            metrics = learner.fine_tune(items)
            losses[batches.kind(step)].append(metrics["loss"])
            shown = _recent(losses)
            bar.update(line, completed=step + 1, description=f"{title} loss: {shown}")
            if (step + 1) % PRINT_EVERY == 0 and not console.is_terminal:
                console.print(f"{title} step {step + 1}/{steps} loss: {shown}", highlight=False)


def _print_set_aside(stage: Stage, batches: Batches, console: Console) -> None:
    """Say which rows were not trained on, a line each for the first few."""
    reasons = batches.set_aside
    for reason in reasons[:SET_ASIDE_SHOWN]:
        console.print(Text(printable(f"row set aside: {reason}")), soft_wrap=True)
    if reasons:
        console.print(f"sft stage {stage.number}: {len(reasons)} rows set aside", highlight=False)


def _recent(losses: dict[str, list[float]]) -> str:
    """Return the mean of the last losses of each kind that has any."""
    means = []
    for kind, past in losses.items():
        last = past[-RECENT:]
        if last:
            means.append(f"{kind} {sum(last) / len(last):.3f}")
    return ", ".join(means)
