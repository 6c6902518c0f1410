"""The recipe as a whole, and the checks between its sections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from axpo.config.devices import check_devices
from axpo.config.sections import EvaluationConfig, LoggingConfig, Section, SFTConfig, SFTStage
from axpo.errors import AxpoError
from axpo.registry import Registered, Variant
from axpo.shipped import model_folder
from axpo.tasks import TaskConfig
from axpo.tasks.task import Fits
from learner.config import CreditConfig, LearnerConfig, Serving, adapters_alone
from learner.network import NetworkConfig
from resampler.config import ResamplerConfig
from resampler.history import History
from rollout_workers.config import RolloutConfig
from rollout_workers.image_rule import ImagesConfig
from tool_server.config import ToolServerConfig

ALSO_WITHOUT_FORKS = (
    *("resampler.k", "resampler.budget.ratio", "resampler.ranking", "resampler.schedule"),
    *("resampler.deadline_s", "learner.credit.baseline", "learner.credit.tool_bonus"),
)
"""Settings of resampling and credit that a recipe with `algorithm: grpo` may change.

The same recipe is run with both algorithms, to compare them. GRPO ignores how many forks AXPO would
make, and in which order. Whoever changes another setting expects forks."""


ModelName = Annotated[str, AfterValidator(model_folder)]
"""A model; one that comes with AXPO is found wherever AXPO is installed."""


class Recipe(Section):
    """Everything a run depends on. The same recipe, seed and machine give the same run."""

    name: str = Field(
        description="run directories are named <name>-<algorithm>, unless --run says otherwise"
    )
    seed: int = Field(0, ge=0, description="all seeds of the run derive from it")
    deterministic: bool = Field(
        False,
        description="GPUs: kernels of engines and learner that give the same bits whatever else "
        "is computed beside; slower. CPUs repeat without it",
    )
    algorithm: Literal["axpo", "grpo"] = Field(
        "axpo", description="grpo: the same code path without resampling"
    )
    model: ModelName = Field(
        description="model folder, or the name of one on the Hugging Face hub; owner/name@revision "
        "pins a commit, tag or branch"
    )
    reference: ModelName | None = Field(
        None,
        description="reference policy of the KL term; None: the model that training starts from",
    )
    task: Annotated[TaskConfig, Registered()]
    steps: int = Field(ge=1, description="updates of the policy")
    questions_per_step: int = Field(ge=1, description="questions a batch (B)")
    max_staleness: int = Field(
        0,
        ge=0,
        description="updates by which the policy that begins a group may be behind the one updated "
        "with it; 0: synchronous",
    )
    stale: Literal["wait", "drop"] = Field(
        "wait",
        description="a group that would be staler in the next batch and is not finished: wait for "
        "it, or drop it",
    )
    sync_at: Literal["update", "batch"] = Field(
        "update",
        description="when engines of an asynchronous run get an update: at once, or between two "
        "batches, so that forks find the prefixes of their batch in the cache; they then work on "
        "max_staleness batches, and not on one more",
    )
    dynamic_sampling: bool = Field(
        False,
        description="set aside groups that teach nothing, all their rollouts and resamples of one "
        "reward, and ask other questions",
    )
    dynamic_sampling_factor: float = Field(
        2.0,
        gt=0,
        description="most further questions that dynamic_sampling asks a step, as a multiple of "
        "questions_per_step",
    )
    checkpoint_every: int = Field(
        10, ge=1, description="steps between checkpoints; the last step always writes one"
    )
    checkpoint_async: bool = Field(
        False,
        description="write checkpoints while training goes on, from a copy in host memory; the "
        "last one is waited for",
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        description="last checkpoints kept on disk, beside the one with the best held-out Pass@1",
    )
    images: ImagesConfig = ImagesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    rollout: RolloutConfig = RolloutConfig()
    resampler: ResamplerConfig = ResamplerConfig()
    learner: LearnerConfig = LearnerConfig()
    tools: ToolServerConfig = ToolServerConfig()
    network: NetworkConfig = NetworkConfig()
    sft: SFTConfig | None = None

    @property
    def serving(self) -> Serving:
        """Return what the learner must know of the engines that serve its policy."""
        return Serving(
            temperature=self.rollout.temperature,
            weight_transfer=self.rollout.engine.weight_transfer,
            ranks_per_engine=self.rollout.engine.tensor_parallel_size,
            images=self.images,
            deterministic=self.deterministic,
        )

    @property
    def lora_rank(self) -> int | None:
        """Return the rank of the adapters that engines get alone; None: they get whole weights."""
        lora = self.learner.lora
        return lora.rank if lora is not None and adapters_alone(self.learner) else None

    @property
    def all_tools(self) -> ToolServerConfig:
        """Return what the tool servers open: the tools of training, then those of evaluations."""
        tools = self.tools.tools | self.evaluation.tools
        both = self.tools.model_copy(update={"tools": tools})
        return both.within(self.images.max_pixels)

    @property
    def extra_questions(self) -> int:
        """Return how many questions a step may ask beyond its batch."""
        if not self.dynamic_sampling:
            return 0
        return int(self.dynamic_sampling_factor * self.questions_per_step)

    @property
    def asked_together(self) -> int:
        """Return how many questions a batch asks, those that will be aborted included."""
        # An asynchronous run goes on with its stragglers.
        return self.questions_per_step if self.max_staleness else self._oversampled

    @property
    def asked_ahead(self) -> int:
        """Return how many questions the engines work on at once."""
        if self.rollout.oversample:
            return self._oversampled
        batches = self.max_staleness if self.sync_at == "batch" else self.max_staleness + 1
        return batches * self.questions_per_step

    @property
    def _oversampled(self) -> int:
        # Rounded first: 1.1 * 10 is a little more than 11.
        return math.ceil(round(self.questions_per_step * (1 + self.rollout.oversample), 6))

    @property
    def most_forks(self) -> int:
        """Return how many continuations a step makes at most."""
        if self.algorithm == "grpo":
            return 0
        k, budget = self.resampler.k, self.resampler.budget
        return budget.prefixes(self.questions_per_step, self.rollout.n, k, History()) * k

    def describe(self) -> str:
        """Return the size of the run in one line."""
        learner, rollout = self.learner, self.rollout
        shared = ", which share them" if rollout.colocated and learner.gpus_per_rank else ""
        return (
            f"{self.name}: {self.algorithm}, {self.steps} steps of {self.questions_per_step} "
            f"questions x {rollout.n} rollouts + at most {self.most_forks} forks; "
            f"{learner.ranks} ZeRO-3 ranks ({learner.gpus_per_rank} GPU each), "
            f"{rollout.workers} engines ({rollout.gpus_per_worker:g} GPU each){shared}"
        )

    def stage_task(self, stage: SFTStage) -> TaskConfig:
        """Return the task's configuration in a stage of fine-tuning."""
        spec = self.task.spec()
        fields = spec if isinstance(spec, dict) else {self.task.registry.key: spec}
        task: TaskConfig = self.task.registry.validate(_merged(fields, stage.task))
        return task

    def check_inputs(self, fits: Fits | None = None) -> list[str]:
        """Check that the model and the data are there; cheap, called before any actor starts.

        Args:
            fits: checks that a question fits the context; None: that is not checked.

        Returns:
            What is wrong with questions that a run will set aside, a line each.

        Raises:
            AxpoError: a model or data file is not there.
        """
        for field, value in (("model", self.model), ("reference", self.reference)):
            if value is None or not looks_local(value):
                continue
            if not (Path(value) / "config.json").is_file():
                raise AxpoError(
                    f"{field}={value!r}: no model folder there (expected a config.json in it)"
                )
        return self.task.check_inputs(fits)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        self._check_engines()
        self._check_sync()
        self._check_tools()
        if self.algorithm == "grpo":
            self._check_no_forks()
        self._check_oversampling()
        self._check_credit()
        self._check_stages()
        return self

    def _check_engines(self) -> None:
        check_devices(self.learner, self.rollout)
        transfer = self.rollout.engine.weight_transfer
        if self.learner.lora is not None and transfer == "sparse_nccl":
            raise ValueError(
                "rollout.engine.weight_transfer='sparse_nccl': compares weights that train, and "
                "with learner.lora only the adapters do; use 'nccl', or learner.lora.sync=adapters"
            )
        if self.lora_rank is not None and self.rollout.sleep_level == 2:
            raise ValueError(
                "rollout.sleep_level=2: drops the base weights, and learner.lora.sync='adapters' "
                "does not send them again; choose rollout.sleep_level=1"
            )
        if self.deterministic and not (self.learner.gpus_per_rank and self.rollout.gpus_per_worker):
            raise ValueError(
                "deterministic=True: chooses kernels of GPUs, and here ranks or engines are on "
                "CPUs (learner.gpus_per_rank, rollout.gpus_per_worker); CPUs repeat without it"
            )
        self._check_silence()
        if self.rollout.colocated and self.max_staleness:
            raise ValueError(
                f"max_staleness={self.max_staleness}: must be 0 with rollout.colocated, "
                "because engines then sleep during an update"
            )

    def _check_sync(self) -> None:
        if self.sync_at == "batch" and not self.max_staleness:
            raise ValueError(
                "sync_at='batch': means nothing with max_staleness=0, whose engines have nothing "
                "to do during an update; leave it out, or set max_staleness=1"
            )

    def _check_silence(self) -> None:
        """Refuse a sync that engines would not live to see the end of."""
        transfer = self.rollout.engine.weight_transfer
        in_one_call = transfer == "nccl" and self.lora_rank is None
        health_s, sync_s = self.rollout.health_s, self.learner.sync_s
        if in_one_call and health_s < sync_s:
            raise ValueError(
                f"rollout.health_s={health_s:g}: must be at least learner.sync_s={sync_s:g} with "
                f"weight_transfer={transfer!r}: an engine gives no sign of life while it receives "
                "all weights in one call"
            )

    def _check_tools(self) -> None:
        in_both = sorted(set(self.tools.tools) & set(self.evaluation.tools))
        if in_both:
            raise ValueError(
                f"evaluation.tools.{in_both[0]}: is in tools.tools too, so it is seen in training; "
                "leave one of them out"
            )
        # An MCP server names its tools only when it runs.
        unknown = sorted(set(self.rollout.outages) - set(self.tools.tools))
        if unknown and not self.tools.mcp:
            raise ValueError(
                f"rollout.outages.{unknown[0]}: no tool of that name in tools.tools "
                f"({', '.join(self.tools.tools)})"
            )

    def _check_no_forks(self) -> None:
        """Refuse settings that mean nothing without forks."""
        usual = dict(_fork_settings(ResamplerConfig(), CreditConfig()))
        for path, value in _fork_settings(self.resampler, self.learner.credit):
            if _also_without_forks(path) or usual.get(path, value) == value:
                continue
            raise ValueError(
                f"{path}={value!r}: means nothing with algorithm='grpo', which forks nothing"
            )

    def _check_oversampling(self) -> None:
        oversample = self.rollout.oversample
        if oversample and self.sync_at == "batch":
            raise ValueError(
                f"rollout.oversample={oversample:g}: must be 0 with sync_at='batch': the engines "
                "would work on stragglers between two batches; use sync_at='update'"
            )
        waits = self.algorithm == "axpo" and self.resampler.schedule.whole_batch
        if oversample and self.max_staleness and waits:
            raise ValueError(
                f"rollout.oversample={oversample:g}: resampler.schedule="
                f"{self.resampler.schedule.name!r} waits for the stragglers that max_staleness="
                f"{self.max_staleness} would leave to the next step; use 'streaming'"
            )
        if oversample and self.dynamic_sampling:
            raise ValueError(
                f"rollout.oversample={oversample:g}: must be 0 with dynamic_sampling, which asks "
                "further questions by itself"
            )

    def _check_credit(self) -> None:
        # The fork place says itself what it means for credit, so a user's own place is checked too.
        place, settings = self.resampler.fork_at, self.learner.credit
        if place.joins_group and not settings.joined:
            raise ValueError(
                f"learner.credit.joined=False: must be True with resampler.fork_at={place.name!r}, "
                "whose continuations join their group"
            )
        if settings.joined and self.resampler.schedule.carries:
            raise ValueError(
                "learner.credit.joined=True: one group needs all its outcomes at once, and with "
                f"resampler.schedule={self.resampler.schedule.name!r} those of forks come later; "
                "choose 'batch' or 'streaming'"
            )
        if not place.keeps_prefix and not settings.prefix:
            raise ValueError(
                f"learner.credit.prefix=False: with resampler.fork_at={place.name!r} there is no "
                "prefix to credit"
            )

    def _check_stages(self) -> None:
        """Refuse a stage of fine-tuning whose task cannot be."""
        stages = self.sft.stages if self.sft else ()
        for number, stage in enumerate(stages):
            try:
                self.stage_task(stage)
            except ValidationError as error:
                raise _at(("sft", "stages", number, "task"), error) from None


def looks_local(model: str) -> bool:
    """Return whether a model is a folder.

    A hub name is exactly `owner/name`, or `owner/name@revision`, with nothing of that name on disk.
    All else is a folder.
    """
    return (
        model.startswith((".", "/", "~"))
        or hub_name(model)[0].count("/") != 1
        or Path(model.split("/")[0]).is_dir()
    )


def hub_name(model: str) -> tuple[str, str | None]:
    """Return the name and the revision of a hub's model; None: its newest state."""
    name, at, revision = model.partition("@")
    return name, revision if at else None


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with changes, section by section."""
    merged = dict(fields)
    for name, value in changes.items():
        # Inside a section the fields that are not named stay as they are.
        before = fields.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = value
    return merged


def _fork_settings(resampler: ResamplerConfig, credit: CreditConfig) -> Iterator[tuple[str, Any]]:
    yield from _settings(resampler, "resampler")
    yield from _settings(credit, "learner.credit")


def _also_without_forks(path: str) -> bool:
    return any(path == allowed or path.startswith(f"{allowed}.") for allowed in ALSO_WITHOUT_FORKS)


def _settings(section: BaseModel, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every setting of a section; of a variant also its name."""
    for field in type(section).model_fields:
        place, value = f"{path}.{field}", getattr(section, field)
        if isinstance(value, Variant):
            yield place, value.name
        if isinstance(value, BaseModel):
            yield from _settings(value, place)
        else:
            yield place, value


def _at(place: tuple[str | int, ...], error: ValidationError) -> ValidationError:
    """Return the error with the place of its section in front of each fault's place."""
    # A custom error keeps the type and the message of the fault as they are.
    faults = [
        InitErrorDetails(
            type=PydanticCustomError(fault["type"], "{message}", {"message": fault["msg"]}),
            loc=(*place, *fault["loc"]),
            input=fault["input"],
        )
        for fault in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, faults)
