"""Configuration of the rollout workers and of the vLLM engine inside each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

RELIED_ON = {
    "model": "set model instead",
    "dtype": "set rollout.engine.dtype instead",
    "tensor_parallel_size": "set rollout.engine.tensor_parallel_size instead",
    "pipeline_parallel_size": "an engine has tensor_parallel_size processes and no others",
    "data_parallel_size": "set rollout.workers instead",
    "weight_transfer_config": "set rollout.engine.weight_transfer instead",
    "worker_extension_cls": "AXPO's own takes the weights",
    "enable_sleep_mode": "set rollout.colocated instead",
    "enable_lora": "set learner.lora.sync instead",
    "quantization": "the learner sends weights as they are",
}
"""AsyncEngineArgs that `options` may not change: engine and learner would not agree on them."""
SET_ELSEWHERE = {
    "max_model_len": "rollout.max_context_tokens",
    "max_num_seqs": "rollout.engine.max_num_seqs",
    "block_size": "rollout.engine.block_size",
    "enforce_eager": "rollout.engine.enforce_eager",
    "gpu_memory_utilization": "rollout.engine.gpu_memory_utilization",
    "kv_cache_memory_bytes": "rollout.engine.kv_cache_gb",
}
"""AsyncEngineArgs that have a field of the recipe: what is checked and estimated is that field."""
SAMPLED_WITH = ("generation_config", "override_generation_config", "logprobs_mode", "max_logprobs")
"""AsyncEngineArgs by which what is sampled, or its log-probability, would be another one."""


class EngineConfig(BaseModel):
    """One vLLM engine. What is not here keeps vLLM's default or goes through `options`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of weights and activations"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one copy of the model")
    max_num_seqs: int = Field(64, ge=1, description="sequences decoded at once")
    block_size: int | None = Field(
        None, ge=1, description="tokens of a KV block; None: vLLM's choice. On CPU a multiple of 32"
    )
    enforce_eager: bool = Field(
        False,
        description="skip compilation: on CPU 15 s instead of 58 s to start, "
        "about 1.2x slower after",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the device's memory vLLM may use"
    )
    kv_cache_gb: float | None = Field(
        None,
        gt=0,
        description="size of the KV cache in GiB; None: what gpu_memory_utilization leaves",
    )
    weight_transfer: Literal["shared_memory", "nccl", "sparse_nccl", "ipc"] = Field(
        "nccl",
        description="how new weights arrive; on CPU: shared_memory. sparse_nccl sends what an "
        "update has changed",
    )
    threads: int = Field(1, ge=1, description="OpenMP threads of a CPU engine")
    options: dict[str, Any] = Field(
        default_factory=dict, description="further vLLM AsyncEngineArgs, by name"
    )

    @model_validator(mode="after")
    def _not_the_images(self) -> EngineConfig:
        if "mm_processor_kwargs" in self.options:
            raise ValueError(
                "options.mm_processor_kwargs: would reach the engines only, and the learner would "
                "train on other images; set images.min_pixels and images.max_pixels instead"
            )
        return self

    @model_validator(mode="after")
    def _not_what_the_learner_relies_on(self) -> EngineConfig:
        for name, key in RELIED_ON.items():
            if name in self.options:
                raise ValueError(f"options.{name}: the weight sync relies on it; {key}")
        return self

    @model_validator(mode="after")
    def _not_what_the_recipe_says(self) -> EngineConfig:
        for name in self.options:
            if name in SET_ELSEWHERE:
                raise ValueError(f"options.{name}: set {SET_ELSEWHERE[name]} instead")
            if name in SAMPLED_WITH:
                raise ValueError(
                    f"options.{name}: would change what is sampled or its log-probabilities, and "
                    "the learner relies on them"
                )
        return self


def _window(steps: tuple[int, int]) -> tuple[int, int]:
    """Check the steps of an outage."""
    first, last = steps
    if not 1 <= first <= last:
        raise ValueError("expected the first and the last step, counted from 1")
    return steps


class RolloutConfig(BaseModel):
    """Rollouts of a question and the workers that make them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # How many workers and rollouts.
    workers: int = Field(1, ge=1, description="rollout workers, one engine each")
    n: int = Field(8, ge=2, description="rollouts a question (N); a group of one has no advantage")
    oversample: float = Field(
        0.0,
        ge=0,
        le=1,
        description="further questions that a step asks, as a share of questions_per_step: the "
        "first questions_per_step whose rollouts are there are trained, the others are aborted; "
        "with max_staleness they go on in the next step",
    )
    # What a rollout may use.
    max_turns: int = Field(3, ge=1, description="policy turns a rollout")
    max_turn_tokens: int = Field(256, ge=1, description="tokens sampled in one turn at most")
    max_context_tokens: int = Field(
        4096, ge=1, description="prompt, images and response together; the engine's max_model_len"
    )
    max_tool_tokens: int = Field(
        4096,
        ge=1,
        description="tokens of the text of one tool result; the rest is cut, and said to be cut",
    )
    temperature: float = Field(1.0, gt=0, description="sampling temperature in training")
    max_calls_per_turn: int = Field(
        1, ge=1, description="tool calls run in one turn; further ones are answered with a message"
    )
    # How much is in flight.
    concurrency: int = Field(64, ge=1, description="rollouts in flight on one worker at most")
    concurrency_min: int = Field(
        8,
        ge=1,
        description="rollouts in flight below which a worker does not go, however full its engine",
    )
    # What happens if something fails.
    deadline_s: float = Field(
        300.0,
        gt=0,
        description="seconds of sampling until a rollout in flight ends as `deadline`; calls of "
        "tools may wait three times as long for free slots, and run as long again: if they run "
        "longer, the rollout ends as `out_of_turns`",
    )
    retries: int = Field(
        1,
        ge=0,
        description="times a rollout that ended by an infrastructure failure is run again, "
        "with the same seeds",
    )
    verify_s: float = Field(
        60.0,
        gt=0,
        description="seconds until the verifier of an answer counts as failed; "
        "then it is asked `retries` times more",
    )
    outages: dict[str, tuple[Annotated[tuple[int, int], AfterValidator(_window)], ...]] = Field(
        default_factory=dict,
        description="by the tool's name, [first, last] steps whose questions find it "
        "unavailable: calls are answered so. Evaluations are spared. With dynamic_sampling every "
        "further round of questions counts as a step",
    )
    health_s: float = Field(
        120.0, gt=0, description="seconds without a sign of life after which a worker is replaced"
    )
    max_failures: int = Field(
        8, ge=0, description="workers that may be lost; one more ends the run"
    )
    # How engines and learner share the machine.
    in_flight_updates: bool = Field(
        False,
        description="a weight update cuts the turns being sampled, and the new policy goes on "
        "with them; else it waits for their end",
    )
    colocated: bool = Field(
        False,
        description="engines sleep while the learner trains, on the same GPUs (vLLM's sleep mode)",
    )
    sleep_level: Literal[1, 2] = Field(
        1,
        description="of colocated engines: 1 keeps the weights in host memory; 2 drops them, and "
        "with them what vLLM keeps outside parameters (Qwen3-VL's deepstack inputs)",
    )
    placement: Literal["PACK", "SPREAD"] = Field(
        "PACK", description="how Ray lays the workers out over the nodes"
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs reserved in Ray for a worker")
    cpus_per_worker: float = Field(1, ge=0, description="CPUs reserved in Ray for a worker")
    engine: EngineConfig = Field(default_factory=EngineConfig)

    def out(self, tool: str, step: int) -> bool:
        """Return whether a tool is unavailable to the questions of a step, counted from 0."""
        return any(first <= step + 1 <= last for first, last in self.outages.get(tool, ()))

    @model_validator(mode="after")
    def _turn_in_context(self) -> RolloutConfig:
        if self.max_turn_tokens > self.max_context_tokens:
            raise ValueError(
                f"rollout.max_turn_tokens={self.max_turn_tokens}: must be at most"
                f" rollout.max_context_tokens={self.max_context_tokens}, which holds the whole"
                f" rollout"
            )
        return self

    @model_validator(mode="after")
    def _one_gpu_a_process(self) -> RolloutConfig:
        if self.gpus_per_worker >= 1 and self.gpus_per_worker != self.engine.tensor_parallel_size:
            raise ValueError(
                f"rollout.gpus_per_worker={self.gpus_per_worker:g}: must equal"
                f" rollout.engine.tensor_parallel_size={self.engine.tensor_parallel_size},"
                f" the GPUs that one engine uses"
            )
        return self
