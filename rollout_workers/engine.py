"""vLLM's AsyncLLM behind token ids: sampling with every parameter explicit, and weight updates that leave no stale cache behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from rollout_workers.config import RolloutConfig
from rollout_workers.interfaces import ContextFull, EngineFailure, Generation, Sampling
from rollout_workers.slots import EngineLoad
from rollout_workers.trajectory import BAN_BIAS, Floats, Ids, Pixels, SpecialTokens

_TOP = 20
"""Logprobs a token from which its entropy is estimated."""
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The model in the scheduler's process. By its short name "uni" vLLM would replace it on a CPU by a process of its own, which both sides
then wait for in busy loops, a core each; the reason, threads bound to cores, does not apply: they are not bound here."""


class VLLMEngine:
    """One engine in a process of its own; the methods belong to one event loop."""

    def __init__(
        self,
        model: str,
        config: RolloutConfig,
        tokens: SpecialTokens,
        *,
        seed: int,
        want_entropies: bool = False,
    ) -> None:
        """Start the engine and load `model` (about 15 s on a CPU with enforce_eager). Sets vLLM's environment in this process only."""
        engine = config.engine
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = (
            "nobind"  # threads of several engines must not be pinned to the same cores
        )
        os.environ["OMP_NUM_THREADS"] = str(engine.threads)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = (
            "spawn"  # as vLLM does in a Ray actor anyway: a fork would copy running threads
        )
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout_workers import weight_transfer

        weight_transfer.register()
        os.environ[weight_transfer.OWNER] = str(os.getpid())
        arguments: dict[str, Any] = {
            "model": model,
            "dtype": engine.dtype,
            "seed": seed % 2**31,
            "max_model_len": config.max_context_tokens,
            "max_num_seqs": engine.max_num_seqs,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "distributed_executor_backend": "mp"
            if engine.tensor_parallel_size > 1
            else _ONE_PROCESS,
            "block_size": engine.block_size,
            "enforce_eager": engine.enforce_eager,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "kv_cache_memory_bytes": None
            if engine.kv_cache_gb is None
            else int(engine.kv_cache_gb * 2**30),
            "enable_prefix_caching": True,
            # vLLM 0.32 on CPU dies of a seeded request whose prompt it prefills in chunks ("CPU Generator does not use offset").
            "enable_chunked_prefill": False if current_platform.is_cpu() else None,
            "limit_mm_per_prompt": {"video": 0},
            "generation_config": "vllm",  # the model folder's sampling defaults stay out
            "logprobs_mode": "processed_logprobs",  # of the distribution sampled from: bans and temperature included
            "max_logprobs": _TOP,
            "disable_log_stats": True,
            "enable_sleep_mode": config.colocated,
            "weight_transfer_config": WeightTransferConfig(backend=engine.weight_transfer),
            "worker_extension_cls": f"{weight_transfer.__name__}.{weight_transfer.EngineProcess.__name__}",
        }
        self._reports: list[Any] = []
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments | engine.options), stat_loggers=[_reporter(self._reports)]
        )
        self._tokens = tokens
        self._in_flight_updates = config.in_flight_updates
        self._logprobs = _TOP if want_entropies else 0
        self._requests = itertools.count()
        self._version = 0
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stats = {
            "generated_tokens": 0,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "idle_seconds": 0.0,
        }
        self._idle_since = time.monotonic()

    async def generate(
        self, prompt_ids: Ids, images: Sequence[Pixels], sampling: Sampling
    ) -> list[Generation]:
        """Sample n continuations of `prompt_ids` (one `<|image_pad|>` per image), the k-th with seed + k.

        Waits while a weight update is on. A continuation that one cuts has `cut` set, and what was sampled so far.
        Raises ContextFull, or EngineFailure where the engine died or refused.
        """
        from vllm.exceptions import VLLMClientError, VLLMServerError

        params = self._sampling_params(sampling)
        async with self._serving():
            version = self._version
            prompt: dict[str, Any] = {
                "prompt_token_ids": prompt_ids.tolist(),
                "cache_salt": f"policy-{version}",
            }
            if images:
                prompt["multi_modal_data"] = {"image": await asyncio.to_thread(_to_pil, images)}
            parts: list[list[Any]] = [[] for _ in range(sampling.n)]
            first: Any = None
            try:
                async for output in self._llm.generate(
                    prompt, params, request_id=str(next(self._requests))
                ):
                    first = first or output
                    for part in output.outputs:
                        parts[part.index].append(part)
            except VLLMClientError as error:
                if "longer than the maximum" in str(error) or "maximum context length" in str(
                    error
                ):
                    raise ContextFull(str(error)) from error
                raise
            except VLLMServerError as error:
                raise EngineFailure(str(error)) from error
            cut = not self._open.is_set()
        reasons = [part[-1].finish_reason if part else None for part in parts]
        if not set(reasons) <= {"stop", "length"} | ({"abort", None} if cut else set()):
            raise EngineFailure(f"finish reasons {reasons}")
        # The first output is the first continuation's, so its cached tokens are what earlier requests left there. FINAL_ONLY would give
        # the number of whichever ended last: its siblings' blocks are hits too.
        prompt_tokens, cached = (
            (len(first.prompt_token_ids), first.num_cached_tokens or 0) if first else (0, 0)
        )
        generations = [self._generation(part, prompt_tokens, cached, version) for part in parts]
        self._stats["generated_tokens"] += sum(len(g.token_ids) for g in generations)
        self._stats["prompt_tokens"] += prompt_tokens
        self._stats["cached_tokens"] += cached
        return generations

    def _sampling_params(self, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=-1,
            min_p=0.0,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=[self._tokens.im_end],
            ignore_eos=True,  # a turn ends at <|im_end|> and nowhere else
            logit_bias=dict.fromkeys(self._tokens.banned, BAN_BIAS),
            logprobs=self._logprobs,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=2**31,  # of each continuation the first token, then all the rest
        )

    def _generation(
        self, parts: Sequence[Any], prompt_tokens: int, cached: int, version: int
    ) -> Generation:
        sampled = [part for part in parts if len(part.token_ids)]
        token_ids = np.concatenate([np.zeros(0), *[part.token_ids for part in sampled]]).astype(
            np.int32
        )
        tables = [_logprobs(part.logprobs, self._logprobs) for part in sampled]
        table = np.concatenate([np.zeros((0, 1 + self._logprobs), np.float32), *tables])
        reason = parts[-1].finish_reason if parts else "abort"
        return Generation(
            token_ids=token_ids,
            logprobs=table[:, 0],
            entropies=entropies(table[:, 1:]) if self._logprobs else None,
            finished=reason == "stop",
            prompt_tokens=prompt_tokens,
            cached_tokens=cached,
            policy_version=version,
            cut=reason == "abort",
        )

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Connect to the learner; `info` is the transfer backend's own."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(info))

    async def start_weight_update(self) -> None:
        """Hold new requests back and wait for those in flight, or cut them (`in_flight_updates`): no request mixes two policies.

        Where an update before was left in the middle, its tensors are forgotten: the engine serves no mixture.
        """
        if not self._open.is_set():
            await self._llm.collective_rpc("abandon_weight_update")
        self._open.clear()
        if self._in_flight_updates:
            await self._llm.pause_generation(mode="abort", clear_cache=False)
        await self._idle.wait()
        await self._llm.start_weight_update()

    async def update_weights(self, payload: dict[str, Any]) -> None:
        """Load one bucket of tensors."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.update_weights(WeightTransferUpdateRequest(payload))

    async def finish_weight_update(self, version: int) -> int:
        """Make the new weights live under `version` and drop all that the old ones computed: KV blocks, image features.

        Returns the version that the engine now says it has.
        """
        await self._llm.finish_weight_update(str(version))
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use during a weight update")
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        if self._in_flight_updates:
            await self._llm.resume_generation()
        self._version = int(await self._llm.get_weight_version())
        self._open.set()
        return self._version

    async def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Names of the engine's parameters that are not exactly what the tensors of a shared-memory payload make them."""
        per_process = await self._llm.collective_rpc("differing_weights", args=(payload,))
        return sorted({name for names in per_process for name in names})

    async def alive(self) -> None:
        """Returns when the engine's own process answers. Raises what vLLM raises where it is dead."""
        await self._llm.is_paused()

    async def sleep(self) -> None:
        """Give the device's memory away: the KV cache and the weights, which the next update brings anew (vLLM's level 2)."""
        self._open.clear()
        await self._idle.wait()
        await self._llm.sleep(level=2)

    async def wake(self, tag: str) -> None:
        """Take back the memory of `weights`, or of `kv_cache`."""
        await self._llm.wake_up(tags=[tag])

    def load(self) -> EngineLoad:
        """What the scheduler last reported."""
        if not self._inside or not self._reports:
            return EngineLoad()
        report = self._reports[-1]
        return EngineLoad(report.num_waiting_reqs, report.kv_cache_usage)

    def stats(self) -> dict[str, float]:
        """Since the start: tokens (an n=K request counts its prompt once) and `idle_seconds` without a request; now: requests `running`."""
        idle = 0.0 if self._inside else time.monotonic() - self._idle_since
        return {
            **self._stats,
            "idle_seconds": self._stats["idle_seconds"] + idle,
            "running": self._inside,
        }

    def shutdown(self) -> None:
        """End the engine process. A killed actor needs no call: the engine process ends with its parent."""
        self._llm.shutdown()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        await self._open.wait()
        if not self._inside:
            self._stats["idle_seconds"] += time.monotonic() - self._idle_since
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._idle_since = time.monotonic()
                self._idle.set()


def _logprobs(flat: Any, top: int) -> Floats:
    """[T, 1 + top] of vLLM's FlatLogprobs: the sampled token's, then the `top` largest.

    A position holds the sampled token first and once more among the largest, if it is one of them; where vLLM merges outputs because
    the consumer lags, it holds it only once, and is one shorter.
    """
    values, starts, ends = (
        np.asarray(numbers) for numbers in (flat.logprobs, flat.start_indices, flat.end_indices)
    )
    places = np.concatenate([starts[:, None], ends[:, None] + np.arange(-top, 0)], axis=1)
    return values[places].astype(np.float32)


def entropies(top_logprobs: Floats) -> Floats:
    """[T] nats from [T, k] top logprobs, the rest of the probability counted as one outcome: a lower bound of the exact entropy."""
    p = np.exp(top_logprobs.astype(np.float64))
    rest = np.clip(1 - p.sum(axis=1), 1e-12, 1)
    return (-(p * top_logprobs).sum(axis=1) - rest * np.log(rest)).astype(np.float32)


def _reporter(reports: list[Any]) -> Any:
    """A vLLM stat logger that keeps the scheduler's last report and nothing else.

    It poses as the Prometheus logger, which vLLM otherwise adds beside any other, with histograms of every request.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Reporter(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(
            self,
            scheduler_stats: Any,
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


def _to_pil(images: Sequence[Pixels]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in images]
