"""The sections of a recipe that belong to no room of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from axpo.registry import Registered
from axpo.tasks.data import DataConfig
from axpo.trackers import Tracker
from tool_server.config import ToolConfig, checked


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _checked_tools(tools: dict[str, ToolConfig]) -> dict[str, ToolConfig]:
    return checked(tools, "evaluation.tools")


class EvaluationConfig(Section):
    """Held-out questions, before, during and after training."""

    samples: int = Field(4, ge=4, description="rollouts a question; Pass@4 needs four")
    start: bool | Literal["measure"] = Field(
        True,
        description="evaluate the start model too; its numbers are not measured if they came with "
        "it for exactly these settings (held_out.json in its folder). measure: measure them in any "
        "case; false: do without",
    )
    every: int = Field(
        0, ge=0, description="also evaluate every so many steps; 0: only at start and end"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the evaluation")
    tools: Annotated[dict[str, ToolConfig], AfterValidator(_checked_tools)] = Field(
        default_factory=dict,
        description="tools never seen in training: offered after the others, in evaluations alone",
    )


def _each_once(trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
    names = [tracker.name for tracker in trackers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return trackers


class LoggingConfig(Section):
    """What a run writes down, and in which folder."""

    root: str = Field("runs", description="folder in which run directories are made")
    trackers: Annotated[
        tuple[Annotated[Tracker, Registered()], ...], AfterValidator(_each_once)
    ] = Field(
        (),
        description="what else gets metrics and trajectories: tensorboard, wandb, trackio, mlflow, "
        "swanlab, with settings; see docs/observability.md",
    )
    groups_kept: int = Field(
        4, ge=0, description="groups a step whose trajectories and images are written"
    )
    held_out_kept: int = Field(
        16,
        ge=0,
        description="held-out questions whose rollouts are written at each evaluation, always the "
        "same ones",
    )


class SFTStage(Section):
    """One stage of supervised fine-tuning: which examples, how many, how fast."""

    steps: int = Field(ge=1, description="updates")
    batch_size: int = Field(ge=1, description="examples an update")
    lr: float = Field(gt=0, description="peak learning rate: linear warm-up, then cosine to 0")
    warmup_steps: int = Field(20, ge=0, description="updates of the linear warm-up")
    mix: dict[str, float] = Field(
        default_factory=lambda: {"demonstration": 1.0},
        description="kinds of examples of the task and the share of the updates each gets",
    )
    data: DataConfig | None = Field(
        None,
        description="demonstrations from files or a dataset, instead of the task's own examples",
    )
    task: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of the task that differ in this stage: a curriculum's difficulty",
    )


class SFTConfig(Section):
    """Supervised fine-tuning in stages."""

    output: str = Field(description="folder of the trained model; must not exist")
    stages: tuple[SFTStage, ...] = Field(min_length=1, description="one after the other")
    keep_stages: bool = Field(
        False,
        description="keep the model after every stage, so that a later run begins at the first "
        "stage that differs",
    )
