"""How vLLM is started: its environment, its arguments, and a logger that keeps the last report."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, get_args

from rollout_workers.config import EngineConfig
from rollout_workers.image_rule import image_rule
from rollout_workers.settings import WorkerSettings

if TYPE_CHECKING:
    from vllm.v1.metrics.loggers import StatLoggerBase
    from vllm.v1.metrics.stats import SchedulerStats

TOP_LOGPROBS = 20
"""Log-probabilities a token from which its entropy is estimated."""
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Runs the model in the scheduler's process.

By its short name "uni" vLLM would replace it on a CPU by a process of its own. Both sides then
wait for each other in busy loops, which take a core each. vLLM's reason for that, threads bound
to cores, does not apply: they are not bound here.
"""
_SOME_MEMORY = 0.01
"""A share of a device's memory. vLLM takes no 0."""


def set_environment(settings: WorkerSettings) -> None:
    """Set vLLM's environment variables for this process and its children.

    Call it before vLLM is imported.
    """
    engine = settings.config.engine
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # The threads of several engines must not be pinned to the same cores.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(engine.threads)
    # vLLM does this in a Ray actor anyway: a fork would copy running threads.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if engine.enforce_eager and not settings.config.gpus_per_worker:
        # vLLM compiles some small functions even so, of integers and thus to the same result. The
        # first request waited 7 s for that, a minute where no compiler had run before.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
    if settings.deterministic:
        # Kernels whose sums have one order, whatever the batch. vLLM itself sets what cuBLAS and
        # NCCL need for it.
        os.environ["VLLM_BATCH_INVARIANT"] = "1"


def engine_arguments(settings: WorkerSettings) -> dict[str, Any]:
    """Return the AsyncEngineArgs of a worker's engine, by name."""
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform

    from rollout_workers import weight_transfer

    config, engine = settings.config, settings.config.engine
    cache_bytes = None if engine.kv_cache_gb is None else int(engine.kv_cache_gb * 2**30)
    extension = weight_transfer.EngineProcess
    arguments: dict[str, Any] = {
        "model": settings.model,
        "dtype": engine.dtype,
        # Each request has a seed of its own.
        "seed": settings.run_seed % 2**31,
        "max_model_len": config.max_context_tokens,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "distributed_executor_backend": "mp" if engine.tensor_parallel_size > 1 else _ONE_PROCESS,
        "block_size": engine.block_size,
        "enforce_eager": engine.enforce_eager,
        "gpu_memory_utilization": _memory_share(engine),
        "kv_cache_memory_bytes": cache_bytes,
        # A fork's prompt is in the cache of the engine that sampled its source.
        "enable_prefix_caching": True,
        # vLLM 0.32 on CPU dies of a seeded request whose prompt it prefills in chunks ("CPU
        # Generator does not use offset").
        "enable_chunked_prefill": False if current_platform.is_cpu() else None,
        "limit_mm_per_prompt": {"video": 0},
        "mm_processor_kwargs": _processor_options(settings),
        "generation_config": "vllm",  # the model folder's sampling defaults stay out
        # Of the distribution that is sampled from: bans and temperature included.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": TOP_LOGPROBS,
        "disable_log_stats": True,
        # On a CPU vLLM has no sleep mode, and its engines keep their memory.
        "enable_sleep_mode": config.colocated and not current_platform.is_cpu(),
        "weight_transfer_config": WeightTransferConfig(backend=engine.weight_transfer),
        "worker_extension_cls": f"{extension.__module__}.{extension.__name__}",
        **_lora_options(settings.lora_rank),
    }
    # Logits in float32, as in the learner: in bfloat16 one of 20 would be up to 0.06 off.
    overrides = {"head_dtype": "float32"} | engine.options.get("hf_overrides", {})
    return arguments | engine.options | {"hf_overrides": overrides}


def _memory_share(engine: EngineConfig) -> float:
    """Return the share of the device's memory that must be free for the engine to start.

    If the size of the cache is given, vLLM needs the share for nothing else. Then others may stand
    on the device: an engine that shares it, or a rank that has lent its memory.
    """
    return engine.gpu_memory_utilization if engine.kv_cache_gb is None else _SOME_MEMORY


def _lora_options(rank: int | None) -> dict[str, Any]:
    """Return what vLLM must be told to take adapters of a rank."""
    if rank is None:
        return {}
    from vllm.config.lora import MaxLoRARanks

    # vLLM has room for some ranks only; an adapter of a smaller one is padded.
    room = min(possible for possible in get_args(MaxLoRARanks) if possible >= rank)
    # One adapter: the policy. The next version takes its place.
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def _processor_options(settings: WorkerSettings) -> dict[str, Any] | None:
    """Return what vLLM shall tell the folder's image processor; None: nothing."""
    if settings.images.is_default:
        return None
    # Both limits: of a size with one of them, vLLM and transformers would fill in the other one
    # from different places.
    return {"images_kwargs": {"size": image_rule(settings.model, settings.images).size}}


def last_report_logger(reports: list[SchedulerStats]) -> type[StatLoggerBase]:
    """Return a vLLM stat logger that keeps the scheduler's last report and nothing else.

    It poses as the Prometheus logger. Otherwise vLLM adds that one beside any other, with
    histograms of every request.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Reporter(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(
            self,
            scheduler_stats: SchedulerStats | None,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                reports[:] = [scheduler_stats]

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            pass

    return Reporter
