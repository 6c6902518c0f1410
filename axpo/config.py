"""The recipe: the whole configuration of a run, composed of the rooms' own. Read, checked and printed before any actor starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from axpo.errors import AxpoError
from axpo.registry import Registered
from axpo.tasks import TaskConfig
from axpo.tasks.data import DataConfig
from learner.config import LearnerConfig, Serving
from resampler.config import ResamplerConfig
from rollout_workers.config import RolloutConfig
from tool_server.config import ToolConfig, ToolServerConfig, checked


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvaluationConfig(Section):
    """Held-out questions, before, during and after training."""

    samples: int = Field(4, ge=4, description="rollouts a question; Pass@4 needs four")
    start: bool = Field(
        True,
        description="evaluate the start model too; false saves the time where its numbers are known",
    )
    every: int = Field(
        0, ge=0, description="also evaluate every so many steps; 0: only at start and end"
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature of the evaluation")
    tools: Annotated[
        dict[str, ToolConfig], AfterValidator(lambda tools: checked(tools, "evaluation.tools"))
    ] = Field(
        default_factory=dict,
        description="tools never seen in training: offered after the others, in evaluations alone",
    )


class LoggingConfig(Section):
    root: str = Field("runs", description="folder in which run directories are made")
    tensorboard: bool = Field(False, description="write TensorBoard events beside metrics.jsonl")
    groups_kept: int = Field(
        4, ge=0, description="groups a step whose trajectories and images are written"
    )


class SFTStage(Section):
    """One stage of supervised fine-tuning: which examples, how many, how fast."""

    steps: int = Field(ge=1, description="updates")
    batch_size: int = Field(ge=1, description="examples an update")
    lr: float = Field(gt=0, description="peak learning rate: linear warm-up, then cosine to 0")
    warmup_steps: int = Field(20, ge=0)
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
    output: str = Field(description="folder of the trained model; must not exist")
    stages: tuple[SFTStage, ...] = Field(min_length=1)
    keep_stages: bool = Field(
        False,
        description="keep the model after every stage, so that a later run begins at the first stage that differs",
    )


class Recipe(Section):
    """Everything a run depends on. The same recipe, seed and machine give the same run."""

    name: str = Field(
        description="run directories are named <name>-<algorithm>, unless --run says otherwise"
    )
    seed: int = Field(0, ge=0, description="all seeds of the run derive from it")
    algorithm: Literal["axpo", "grpo"] = Field(
        "axpo", description="grpo: the same code path without resampling"
    )
    model: str = Field(description="model folder, or the name of one on the Hugging Face hub")
    reference: str | None = Field(
        None,
        description="reference policy of the KL term; None: the model that training starts from",
    )
    task: Annotated[TaskConfig, Registered()]
    steps: int = Field(ge=1, description="updates of the policy")
    questions_per_step: int = Field(ge=1, description="questions a batch (B)")
    max_staleness: int = Field(
        0,
        ge=0,
        description="updates by which the policy that begins a group may be behind the one updated with it; 0: synchronous",
    )
    stale: Literal["wait", "drop"] = Field(
        "wait",
        description="a group that would be staler in the next batch and is not finished: wait for it, or drop it",
    )
    dynamic_sampling: bool = Field(
        False,
        description="set aside groups that teach nothing, all their rollouts and resamples of one reward, and ask other questions",
    )
    dynamic_sampling_factor: float = Field(
        2.0,
        gt=0,
        description="most further questions that dynamic_sampling asks a step, as a multiple of questions_per_step",
    )
    checkpoint_every: int = Field(
        10, ge=1, description="steps between checkpoints; the last step always writes one"
    )
    checkpoint_async: bool = Field(
        False,
        description="write checkpoints while training goes on, from a copy in host memory; the last one is waited for",
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="last checkpoints kept on disk, beside the one with the best held-out Pass@1",
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    rollout: RolloutConfig = RolloutConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    learner: LearnerConfig = LearnerConfig()
    tools: ToolServerConfig = ToolServerConfig()
    sft: SFTConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        transfer = self.rollout.engine.weight_transfer
        if self.learner.gpus_per_rank == 0 and transfer != "shared_memory":
            raise ValueError(
                f"rollout.engine.weight_transfer={transfer!r}: needs learner.gpus_per_rank=1; "
                "CPU ranks send through 'shared_memory'"
            )
        if self.rollout.colocated and self.max_staleness:
            raise ValueError(
                f"max_staleness={self.max_staleness}: must be 0 with rollout.colocated, where engines sleep during an update"
            )
        if both := sorted(set(self.tools.tools) & set(self.evaluation.tools)):
            raise ValueError(
                f"evaluation.tools.{both[0]}: is in tools.tools too, so it is seen in training; leave one of them out"
            )
        if not self.tools.mcp and (
            unknown := sorted(set(self.rollout.outages) - set(self.tools.tools))
        ):
            raise ValueError(
                f"rollout.outages.{unknown[0]}: no tool of that name in tools.tools ({', '.join(self.tools.tools)})"
            )
        self._check_method()
        for stage in self.sft.stages if self.sft else ():
            self.stage_task(stage)
        return self

    @property
    def serving(self) -> Serving:
        """Return what the learner must know of the engines that serve its policy."""
        return Serving(
            temperature=self.rollout.temperature,
            weight_transfer=self.rollout.engine.weight_transfer,
            ranks_per_engine=self.rollout.engine.tensor_parallel_size,
        )

    @property
    def all_tools(self) -> ToolServerConfig:
        """What the tool servers of a run open: the tools of training, and those of evaluations alone."""
        return self.tools.model_copy(update={"tools": self.tools.tools | self.evaluation.tools})

    @property
    def extra_questions(self) -> int:
        """Most questions that a step may ask beyond its batch."""
        return (
            int(self.dynamic_sampling_factor * self.questions_per_step)
            if self.dynamic_sampling
            else 0
        )

    def _check_method(self) -> None:
        forks, credit = self.resampler, self.learner.credit
        if self.algorithm == "grpo":
            for section, settings, names in (
                (
                    "resampler",
                    forks,
                    (
                        "fork_at",
                        "trigger",
                        "min_distinct_calls",
                    ),
                ),
                ("learner.credit", credit, ("prefix", "joined")),
            ):
                for name in names:
                    if (value := getattr(settings, name)) != type(settings).model_fields[
                        name
                    ].default:
                        told = getattr(value, "name", value)
                        raise ValueError(
                            f"{section}.{name}={told!r}: means nothing with algorithm='grpo', which forks nothing"
                        )
            if forks.budget.learns:
                raise ValueError(
                    f"resampler.budget={forks.budget.name!r}: means nothing with "
                    "algorithm='grpo', which forks nothing"
                )
        place = forks.fork_at
        if place.joins_group and not credit.joined:
            raise ValueError(
                f"learner.credit.joined=False: must be True with resampler.fork_at={place.name!r}, "
                "whose branches join their group"
            )
        if not place.keeps_prefix and not credit.prefix:
            raise ValueError(
                f"learner.credit.prefix=False: with resampler.fork_at={place.name!r} there is no prefix "
                "to credit"
            )

    def stage_task(self, stage: SFTStage) -> Any:
        """The task's configuration in an SFT stage."""
        spec = self.task.spec()
        fields = spec if isinstance(spec, dict) else {self.task.registry.key: spec}
        return self.task.registry.validate(_merged(fields, stage.task))

    def check_inputs(self) -> None:
        """Raise AxpoError for a model or data file that is not there. Cheap; called before any actor starts."""
        for field, value in (("model", self.model), ("reference", self.reference)):
            if (
                value is not None
                and looks_local(value)
                and not (Path(value) / "config.json").is_file()
            ):
                raise AxpoError(
                    f"{field}={value!r}: no model folder there (expected a config.json in it)"
                )
        self.task.check_inputs()

    def check_resources(
        self, cpus: float, gpus: float, learner: bool = True, workers: bool = True
    ) -> None:
        """Raise AxpoError where the run, or the half of it that is started, asks for more than `cpus` and `gpus` of the Ray cluster."""
        ranks = self.learner.ranks if learner else 0
        engines, servers = (self.rollout.workers, self.tools.servers) if workers else (0, 0)
        for unit, have, per_rank, per_worker, per_server in (
            ("GPU", gpus, self.learner.gpus_per_rank, self.rollout.gpus_per_worker, 0.0),
            (
                "CPU",
                cpus,
                self.learner.cpus_per_rank,
                self.rollout.cpus_per_worker,
                self.tools.cpus_per_server,
            ),
        ):
            need = ranks * per_rank + engines * per_worker + servers * per_server
            if need > have:
                raise AxpoError(
                    f"learner.ranks={ranks} with {per_rank:g} {unit}s each, rollout.workers={engines} with {per_worker:g} each "
                    f"and tools.servers={servers} with {per_server:g} each need {need:g} {unit}s; the Ray cluster has {have:g}"
                )


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The fields with changes, section by section."""
    both = {
        name: _merged(fields[name], value)
        if isinstance(fields.get(name), dict) and isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    return fields | both


def looks_local(model: str) -> bool:
    """A hub name is exactly `owner/name` with nothing of that name on disk; anything else is a folder."""
    return (
        model.startswith((".", "/", "~"))
        or model.count("/") != 1
        or Path(model.split("/")[0]).is_dir()
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `key.sub=value` overrides (values are YAML too).

    Raises AxpoError naming the file, the field, its value and what was expected.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise AxpoError(f"recipe {path}: no such file")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise AxpoError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise AxpoError(f"recipe {path}: expected a mapping of fields, found {type(data).__name__}")
    return parse_recipe(data, overrides, str(path))


def parse_recipe(
    data: dict[str, Any], overrides: Sequence[str] = (), source: str = "recipe"
) -> Recipe:
    """Validate a recipe's fields; see `load_recipe`."""
    for override in overrides:
        _set(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise AxpoError("\n".join(_one_line(source, e) for e in error.errors())) from None


def _one_line(source: str, error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{source}: {field}: unknown key"
    if error["type"] == "missing":
        return f"{source}: {field}: required, but not given"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{source}: {message}"
        if error["type"] == "value_error"
        else f"{source}: {field}={error['input']!r}: {message}"
    )


def _set(data: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise AxpoError(f"--set {override}: expected key=value, for example learner.lr=1e-5")
    *parents, last = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise AxpoError(f"--set {override}: {parent} is a value, not a section")
        data = child
    data[last] = yaml.safe_load(text)
