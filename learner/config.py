"""Settings of the learner; the defaults of loss and KL are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo.registry import Registered
from learner.baselines import Baseline
from learner.objectives import Clip, Objective
from rollout_workers.image_rule import ImagesConfig

Layout: TypeAlias = Literal["tree", "packed", "padded"]
"""How a micro-batch is laid out; see `learner.batch`."""

VLLM_LORA_RANK = 512
"""The largest rank of an adapter in vLLM."""
HEAD_CHUNK = 1 << 24
"""Logits that the head holds at a time on a CPU: 64 MB, and four times that while it works."""
HEAD_CHUNK_CUDA = 1 << 28
"""The same on a GPU: 1 GiB, and four times that. A chunk must have enough tokens (1,766 of
Qwen3-VL's vocabulary) that reading the head's weight and its gradient once does not count."""


class LoraSettings(BaseModel):
    """Low-rank adapters on the language model; everything else is frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(16, ge=1, description="rank of each adapter")
    alpha: int = Field(32, ge=1, description="adapters are scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of linear layers",
    )
    sync: Literal["merged", "adapters"] = Field(
        "merged",
        description="what the engines get: whole weights with the adapters merged in, or the "
        "adapters alone, which vLLM adds to the base model it loaded",
    )

    @model_validator(mode="after")
    def _vllm_takes_it(self) -> LoraSettings:
        if self.sync == "adapters" and self.rank > VLLM_LORA_RANK:
            raise ValueError(
                f"rank={self.rank}: with sync='adapters' at most {VLLM_LORA_RANK}, which is what "
                "vLLM takes; choose sync='merged'"
            )
        return self


class CreditConfig(BaseModel):
    """Which tokens get which signal; see `learner.credit`. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: Annotated[Baseline, Registered()] | None = Field(
        None, description="what is subtracted from rewards; None: the objective's own baseline"
    )
    prefix: bool = Field(
        True,
        description="the prefix of a resampled rollout is credited with what came of it; "
        "False (ablation): it trains nothing",
    )
    joined: bool = Field(
        False,
        description="ablation: a question's rollouts and continuations are one group with one mean "
        "and std, not separate streams",
    )
    tool_bonus: float = Field(
        0.0,
        description="added to the reward of every rollout and continuation that calls a tool, "
        "right or wrong; below 0: a tool penalty",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CreditConfig:
        if self.joined and not self.prefix:
            raise ValueError(
                "learner.credit.prefix=False: with learner.credit.joined=True there is no "
                "separate prefix credit to leave out"
            )
        return self


class LearnerConfig(BaseModel):
    """The `learner` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Ranks
    ranks: int = Field(2, ge=1, description="ZeRO-3 ranks, one process each")
    gpus_per_rank: int = Field(0, ge=0, le=1, description="0: CPU with gloo; 1: one GPU with NCCL")
    cpus_per_rank: float = Field(
        1, gt=0, description="CPUs that Ray reserves for a rank; it computes with as many threads"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of forward and backward; the optimizer keeps float32"
    )

    # Optimizer
    lr: float = Field(1e-6, gt=0, description="AdamW learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW betas")
    weight_decay: float = Field(0.0, ge=0, description="AdamW decoupled weight decay")
    warmup_steps: int = Field(
        0, ge=0, description="optimizer steps over which the learning rate rises linearly to lr"
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="after warm-up: constant, or cosine to 0 at total_steps"
    )
    total_steps: int = Field(
        0, ge=0, description="optimizer steps of the whole run; only read by the cosine schedule"
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="gradients with a larger global norm are scaled down to it"
    )

    # Loss
    objective: Annotated[Objective, Registered()] = Field(
        Clip(), description="policy loss; clip is the paper's. `axpo list objectives` shows all"
    )
    credit: CreditConfig = Field(
        default_factory=CreditConfig,
        description="advantages of rollouts, prefixes and continuations",
    )
    epochs: int = Field(1, ge=1, description="passes over a batch")
    mini_batches: int = Field(
        1, ge=1, description="optimizer steps a pass; the questions are dealt out at random"
    )
    correction: Literal["none", "truncate", "mask"] = Field(
        "none",
        description="for engine and learner computing different log-probabilities; with it the "
        "ratio is to the learner's own",
    )
    correction_level: Literal["token", "sequence"] = Field(
        "token", description="whose probability the correction compares"
    )
    correction_cap: float = Field(
        2.0, gt=1, description="largest importance weight; mask: also the inverse of the smallest"
    )
    kl_beta: float = Field(
        1e-3, ge=0, description="weight of KL(policy || reference); 0 loads no reference"
    )

    # Computation
    layout: Layout = Field(
        "tree",
        description="tree: shared prefixes are computed once; packed: sequences side by side; "
        "padded: one row each. Same result",
    )
    micro_batch_tokens: int = Field(
        16384, ge=1, description="tokens of one micro-batch of one rank, as laid out"
    )
    lora: LoraSettings | None = Field(None, description="train adapters only; None: all parameters")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass"
    )
    offload_optimizer: bool = Field(False, description="optimizer states in host memory")
    offload_parameters: bool = Field(False, description="parameters in host memory")

    profile_steps: tuple[int, int] | None = Field(
        None,
        description="first and last step of a window in which torch's profiler records every rank, "
        "into RUN/profile; the window is slower",
    )

    # Weights to the engines, and faults
    bucket_mb: int = Field(256, ge=1, description="weights gathered and sent at a time, MB")
    check_sync: bool = Field(
        False,
        description="after each weight update compare the engines' weights with the learner's",
    )
    sync_s: float = Field(
        120.0,
        gt=0,
        description="seconds until a weight sync is given up, from when the engines hold still; "
        "then the run goes back to its last checkpoint",
    )
    max_skipped: int = Field(
        5,
        ge=1,
        description="updates in a row that were not finite, and so skipped, until the run stops",
    )
    deadline_s: float = Field(
        1800, gt=0, description="seconds until start, update, save or load is given up"
    )

    @property
    def threads(self) -> int:
        """Return the torch threads of a rank."""
        return max(1, int(self.cpus_per_rank))

    @model_validator(mode="after")
    def _consistent(self) -> LearnerConfig:
        if self.schedule == "cosine" and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"learner.total_steps={self.total_steps}: the cosine schedule needs more than "
                f"learner.warmup_steps={self.warmup_steps}"
            )
        first, last = self.profile_steps or (1, 1)
        if not 1 <= first <= last:
            raise ValueError(
                f"learner.profile_steps={[first, last]}: expected a first step of at least 1, and "
                "a last one that is not before it"
            )
        if self.check_sync and adapters_alone(self):
            raise ValueError(
                "learner.check_sync=True: compares whole weights, and learner.lora.sync='adapters' "
                "sends none; choose learner.lora.sync='merged'"
            )
        return self


def adapters_alone(config: LearnerConfig) -> bool:
    """Return whether the engines get the adapters and keep their base weights."""
    return config.lora is not None and config.lora.sync == "adapters"


@dataclass(frozen=True)
class Serving:
    """What the learner must know of the engines that serve its policy.

    A recipe derives it from its `rollout` section, so nothing is set twice.
    """

    temperature: float = 1.0
    """Sampling temperature of the rollouts, applied to the learner's logits too."""
    weight_transfer: str = "shared_memory"
    """How weights reach the engines: shared_memory, nccl or ipc."""
    ranks_per_engine: int = 1
    """Processes of one engine (its tensor parallel size); sizes the nccl group."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """How large the engines see images."""
    deterministic: bool = False
    """The engines' kernels repeat to the bit, and so shall the learner's."""

    @property
    def in_one_group(self) -> bool:
        """Whether ranks and engines are in one collective during a weight sync."""
        return self.weight_transfer != "shared_memory"


@dataclass(frozen=True)
class RankSettings:
    """What one rank starts with."""

    model: str
    """Hugging Face folder of the policy."""
    reference: str
    """Hugging Face folder of the reference policy."""
    config: LearnerConfig
    serving: Serving
    seed: int
    rank: int
    address: str
    """Host on which rank 0 listens for the others."""
    port: int
