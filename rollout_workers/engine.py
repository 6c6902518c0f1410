"""vLLM's AsyncLLM behind token ids.

Every sampling parameter is explicit, and a weight update leaves no stale cache behind.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from axpo.quick_imports import quick_imports
from axpo.spans import span
from rollout_workers import engine_process
from rollout_workers.engine_setup import (
    TOP_LOGPROBS,
    engine_arguments,
    last_report_logger,
    set_environment,
)
from rollout_workers.engine_updates import as_file, updates_of
from rollout_workers.gate import Gate
from rollout_workers.interfaces import ContextFull, EngineFailure, Generation, Sampling
from rollout_workers.logprobs import entropies, logprob_table
from rollout_workers.pictures import Picture
from rollout_workers.settings import WorkerSettings
from rollout_workers.slots import EngineLoad
from rollout_workers.special_tokens import BAN_BIAS, Ids, SpecialTokens

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.metrics.stats import SchedulerStats


SWITCH_S = 0.0005
"""Seconds until a thread of this process must let another one run; Python's default is 0.005.

vLLM's threads, the tokenizer's and the verifiers' hand each rollout to and from the event loop, and
each time it waits for a thread that computes. With many turns ending at once this is what the
engine waits for: on two cores the demo's rollouts take a tenth less time, for the same CPU time.
"""


class VLLMEngine:
    """One engine in a process of its own. The methods belong to one event loop."""

    def __init__(self, settings: WorkerSettings, tokens: SpecialTokens) -> None:
        """Start the engine and load the model: about 15 s on a CPU with enforce_eager.

        vLLM's environment variables are set in this process only.

        Args:
            settings: the worker's.
            tokens: the tokenizer's special tokens.
        """
        config = settings.config
        self.prepare(settings)
        sys.setswitchinterval(SWITCH_S)
        self.import_packages()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout_workers import weight_transfer

        weight_transfer.register()
        os.environ[weight_transfer.OWNER] = str(os.getpid())
        arguments = engine_arguments(settings)
        self._reports: list[SchedulerStats] = []
        with span("engine"), engine_process.forked():
            self._llm = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**arguments), stat_loggers=[last_report_logger(self._reports)]
            )
        self._tokens = tokens
        self._updates = updates_of(self._llm, settings)
        self._in_flight_updates = config.in_flight_updates
        self._sleep_level = config.sleep_level
        self._top = TOP_LOGPROBS if settings.want_entropies else 0
        self._requests = itertools.count()
        self._version = 0
        self._gate = Gate()
        self._tokens_seen: Counter[str] = Counter()

    @staticmethod
    def prepare(settings: WorkerSettings) -> None:
        """Let a process begin to import vLLM beside this one, for the engine to be made here."""
        set_environment(settings)
        engine_process.prepare()

    @staticmethod
    def import_packages() -> None:
        """Import what an engine needs in this process, after `prepare`."""
        with span("imports"), quick_imports():
            import vllm.v1.engine.async_llm  # noqa: F401

    async def generate(
        self, prompt_ids: Ids, images: Sequence[Picture], sampling: Sampling
    ) -> list[Generation]:
        """Sample continuations of a prompt; the k-th has seed + k.

        This waits during a weight update. A continuation that an update cuts has `cut` set, and
        what was sampled so far.

        Args:
            prompt_ids: shape [P], one `<|image_pad|>` per image.
            images: in the order of their placeholders.
            sampling: how many, and how.

        Raises:
            ContextFull: if the prompt leaves no room for a token.
            EngineFailure: if the engine died or refused.
        """
        from vllm.exceptions import VLLMClientError, VLLMServerError

        async with self._gate.passing():
            version = self._version
            prompt = _prompt(prompt_ids, images, version)
            try:
                first, parts = await self._collect(prompt, sampling)
            except VLLMClientError as error:
                if _too_long(error):
                    raise ContextFull(str(error)) from error
                raise
            except VLLMServerError as error:
                raise EngineFailure(str(error)) from error
            # The gate was closed meanwhile: a weight update is on, and may have cut the request.
            cut = not self._gate.is_open
        _check_finish_reasons(parts, cut=cut)
        # The first output is the first continuation's, so its cached tokens are what earlier
        # requests left there. FINAL_ONLY would give the number of whichever continuation ended
        # last: the blocks of its siblings are hits too.
        prompt_tokens = len(first.prompt_token_ids) if first else 0
        cached = (first.num_cached_tokens or 0) if first else 0
        generations = [self._generation(part, prompt_tokens, cached, version) for part in parts]
        self._tokens_seen["generated_tokens"] += sum(len(g.token_ids) for g in generations)
        self._tokens_seen["prompt_tokens"] += prompt_tokens
        self._tokens_seen["cached_tokens"] += cached
        return generations

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Connect to the learner; `info` is the transfer backend's own."""
        await self._updates.connect(info)

    async def start_weight_update(self) -> None:
        """Hold new requests back, and wait for those in flight or cut them (`in_flight_updates`).

        So no request mixes two policies. If the update before this one was left in the middle,
        its tensors are forgotten: the engine serves no mixture.
        """
        again = not self._gate.is_open
        self._gate.close()
        if self._in_flight_updates:
            await self._llm.pause_generation(mode="abort", clear_cache=False)
        await self._gate.empty()
        await self._updates.start(again=again)

    async def update_weights(self, payload: dict[str, Any]) -> None:
        """Load one bucket of tensors, or adapters."""
        await self._updates.load(payload)

    async def finish_weight_update(self, version: int) -> int:
        """Serve the new weights, and drop all that the old ones computed.

        KV blocks and image features are dropped.

        Returns:
            The version that the engine now says it has.
        """
        confirmed = await self._updates.finish(version)
        # What the old policy computed must not serve the new one.
        if not await self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is in use during a weight update")
        await self._llm.reset_mm_cache()
        await self._llm.reset_encoder_cache()
        if self._in_flight_updates:
            await self._llm.resume_generation()
        self._version = confirmed
        self._gate.open()
        return self._version

    async def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Return the names of the engine's parameters that differ from a bucket's tensors.

        The comparison is exact.
        """
        with as_file(payload) as bucket:
            per_process = await self._llm.collective_rpc("differing_weights", args=(bucket,))
        return sorted(set().union(*per_process))

    async def alive(self) -> None:
        """Return when the engine's own process answers; raise what vLLM raises if it is dead."""
        await self._llm.is_paused()

    async def sleep(self) -> None:
        """Give the device's memory away: the KV cache and the weights.

        At level 1 the weights wait in host memory. At level 2 the next weight update brings them.
        """
        self._gate.close()
        await self._gate.empty()
        await self._llm.sleep(level=self._sleep_level)

    async def wake(self, tag: str) -> None:
        """Take back the memory of `weights` or of `kv_cache`."""
        await self._llm.wake_up(tags=[tag])

    def load(self) -> EngineLoad:
        """Return what the scheduler last reported."""
        # Without a request nothing is reported, so the last report may be old.
        if not self._gate.inside or not self._reports:
            return EngineLoad()
        report = self._reports[-1]
        return EngineLoad(report.num_waiting_reqs, report.kv_cache_usage)

    def stats(self) -> dict[str, float]:
        """Return counts.

        Since the start: `generated_tokens`, `prompt_tokens` and `cached_tokens` (a request of n=K
        counts its prompt once), and `idle_seconds` without a request. Now: requests `running`.
        """
        return {
            "generated_tokens": self._tokens_seen["generated_tokens"],
            "prompt_tokens": self._tokens_seen["prompt_tokens"],
            "cached_tokens": self._tokens_seen["cached_tokens"],
            "idle_seconds": self._gate.idle_seconds,
            "running": self._gate.inside,
        }

    def shutdown(self) -> None:
        """End the engine process.

        A killed actor needs no call: the engine process ends with its parent.
        """
        self._llm.shutdown()
        self._updates.close()

    async def _collect(
        self, prompt: dict[str, Any], sampling: Sampling
    ) -> tuple[RequestOutput | None, list[list[CompletionOutput]]]:
        """Run a request; return its first output, and the outputs of each continuation."""
        params = self._sampling_params(sampling)
        parts: list[list[CompletionOutput]] = [[] for _ in range(sampling.n)]
        first: RequestOutput | None = None
        outputs = self._llm.generate(
            prompt,
            params,
            request_id=str(next(self._requests)),
            lora_request=self._updates.adapter,
        )
        async for output in outputs:
            first = first or output
            for part in output.outputs:
                parts[part.index].append(part)
        return first, parts

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
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
            # A turn ends at <|im_end|> and nowhere else.
            stop_token_ids=[self._tokens.im_end],
            ignore_eos=True,
            logit_bias=dict.fromkeys(self._tokens.banned, BAN_BIAS),
            logprobs=self._top,
            flat_logprobs=True,
            detokenize=False,
            # Of each continuation the first token, then all the rest.
            output_kind=RequestOutputKind.DELTA,
            stream_interval=2**31,
        )

    def _generation(
        self, parts: Sequence[CompletionOutput], prompt_tokens: int, cached: int, version: int
    ) -> Generation:
        """Join the outputs of one continuation."""
        sampled = [part for part in parts if len(part.token_ids)]
        # A continuation that was cut at once has no part, or an empty one without logprobs.
        ids = np.concatenate([np.zeros(0), *[part.token_ids for part in sampled]])
        tables = [logprob_table(part.logprobs, self._top) for part in sampled]
        table = np.concatenate([np.zeros((0, 1 + self._top), np.float32), *tables])
        reason = parts[-1].finish_reason if parts else "abort"
        return Generation(
            token_ids=ids.astype(np.int32),
            logprobs=table[:, 0],
            entropies=entropies(table[:, 1:]) if self._top else None,
            finished=reason == "stop",
            prompt_tokens=prompt_tokens,
            cached_tokens=cached,
            policy_version=version,
            cut=reason == "abort",
        )


def _prompt(prompt_ids: Ids, images: Sequence[Picture], version: int) -> dict[str, Any]:
    prompt: dict[str, Any] = {
        "prompt_token_ids": prompt_ids.tolist(),
        # KV blocks of another policy version must not be hits.
        "cache_salt": f"policy-{version}",
    }
    if images:
        prompt["multi_modal_data"] = {"image": [picture.image for picture in images]}
        # Without names vLLM would hash every image of every request.
        prompt["multi_modal_uuids"] = {"image": [picture.digest for picture in images]}
    return prompt


def _too_long(error: Exception) -> bool:
    message = str(error)
    return "longer than the maximum" in message or "maximum context length" in message


def _check_finish_reasons(parts: Sequence[Sequence[CompletionOutput]], *, cut: bool) -> None:
    """Raise EngineFailure if a continuation ended in a way that nobody asked for."""
    reasons = [part[-1].finish_reason if part else None for part in parts]
    expected: set[str | None] = {"stop", "length"}
    if cut:
        expected |= {"abort", None}
    if not set(reasons) <= expected:
        raise EngineFailure(f"finish reasons {reasons}")
