"""Real engines under control: every request samples as many tokens as its seed says, and turns call a tool or answer as scripted.

What is measured is ours and vLLM's: prompts, images, scheduling, sampling, the agent loop, Ray. What the tiny policy would say is
not: its turns get an ending written by `Script`, as if sampled, so that lengths and turns are the same in everything compared.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from axpo.tasks import load_task
from axpo.tasks.embedded.small_digit import SmallDigitConfig
from rollout_workers.chat import Chat
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.engine import VLLMEngine
from rollout_workers.interfaces import Generation, Sampling
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import Question
from rollout_workers.worker import RolloutWorker

MODEL = "axpo/models/qwen3-vl-tiny"
IN_FLIGHT = 64
BLOCK = 32
CONFIG = RolloutConfig(
    n=8,
    max_turns=3,
    max_turn_tokens=832,
    max_context_tokens=2048,
    concurrency=IN_FLIGHT,
    deadline_s=600,
    health_s=300,
    cpus_per_worker=0.1,
    engine=EngineConfig(
        dtype="float32",
        block_size=BLOCK,
        max_num_seqs=IN_FLIGHT,
        enforce_eager=True,
        kv_cache_gb=2,
        threads=1,
        weight_transfer="shared_memory",
    ),
)


@dataclass(frozen=True)
class Script:
    """A function of a request's seed: its length in tokens (thoughts, log-normal, then the call if there is one), and its ending."""

    mean: float = 64.0
    sigma: float = 0.0
    most: int = 384
    tool_turns: int = 0
    """Turns of every rollout that call the tool."""
    tool_rate: float = 1.0
    """Share of the rollouts that call it at all."""
    call: int = 32
    """Tokens of a call; a turn that a fork begins behind the opening tag has no others."""
    right: float = 0.5
    """Share of right answers."""

    def tokens(self, seed: int, turn: int = 0, opened: bool = False) -> int:
        if opened:
            return self.call
        draw = np.random.default_rng(seed).lognormal(
            math.log(self.mean) - self.sigma**2 / 2, self.sigma
        )
        return int(np.clip(draw, 4, self.most)) + (self.call if self.calls(seed, turn) else 0)

    def calls(self, seed: int, turn: int) -> bool:
        return turn < self.tool_turns and (
            turn > 0 or np.random.default_rng([seed, 1]).uniform() < self.tool_rate
        )

    def ending(self, seed: int, turn: int, opened: bool) -> str:
        call = (
            f'{{"name": "wait", "arguments": {{"seed": {seed % 2**31}}}}}\n</tool_call><|im_end|>'
        )
        if opened:
            return call
        if self.calls(seed, turn):
            return f"\n</think>\n\n<tool_call>\n{call}"
        right = np.random.default_rng([seed, 3]).uniform() < self.right
        return f"\n</think>\n\n\\boxed{{{'right' if right else 'wrong'}}}<|im_end|>"


class ScriptedEngine(VLLMEngine):
    """vLLM with forced lengths. `script` may be changed between measurements."""

    def __init__(self, model: str, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self.chat, self.script = Chat.load(model), Script()

    def _sampling_params(self, sampling: Sampling) -> Any:
        params = super()._sampling_params(sampling)
        params.stop_token_ids = []
        return params

    async def generate(self, prompt_ids: Any, images: Any, sampling: Sampling) -> list[Generation]:
        opened = prompt_ids[-1] == self.chat.tokens.call_open
        # A prompt opens system (the tools), user and assistant; each tool result opens the last two again.
        turn = (int((prompt_ids == self.chat.tokens.im_start).sum()) - 3) // 2
        seed = sampling.seed
        most = min(sampling.max_tokens, self.script.tokens(seed, turn, opened))
        shorter = replace(sampling, max_tokens=most)
        generations = await super().generate(prompt_ids, images, shorter)
        return [
            self._ended(generation, self.script.ending(seed + k, turn, opened))
            for k, generation in enumerate(generations)
        ]

    def _ended(self, generation: Generation, ending: str) -> Generation:
        special = [
            getattr(self.chat.tokens, name)
            for name in ("think_close", "call_open", "call_close", "im_end")
        ]
        sampled = np.where(np.isin(generation.token_ids, special), 20, generation.token_ids)
        ids = np.concatenate([sampled, self.chat.encode_policy(ending)]).astype(np.int32)
        logprobs = np.concatenate(
            [generation.logprobs, np.full(len(ids) - len(sampled), -0.5)]
        ).astype(np.float32)
        return replace(generation, token_ids=ids, logprobs=logprobs, finished=True)


@dataclass(frozen=True)
class Waited:
    status: str = "ok"
    text: str = "done."
    images: tuple[Any, ...] = ()
    tool: str = "wait"


class WaitingTools:
    """A tool whose latency is log-normal, drawn from the seed in its arguments; the mean can be set in the worker's process."""

    mean_s = 0.0
    sigma = 1.0

    async def schemas(self) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": "wait", "parameters": {}}}]

    def evaluating(self) -> WaitingTools:
        return self

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        images: Sequence[Any],
        earlier: Sequence[Any] = (),
    ) -> Waited:
        await asyncio.sleep(self.seconds(arguments["seed"]))
        return Waited()

    def seconds(self, seed: int) -> float:
        if not self.mean_s:
            return 0.0
        return float(
            np.random.default_rng([seed, 2]).lognormal(
                math.log(self.mean_s) - self.sigma**2 / 2, self.sigma
            )
        )


class BenchWorker(RolloutWorker):
    """A rollout worker on a scripted engine, with the two baselines that share its engine and its process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"engine_factory": ScriptedEngine})

    async def set(self, script: Script, tool_mean_s: float = 0.0) -> None:
        """Begin a measurement: a script, and empty caches."""
        self._engine.script, self._tools.mean_s = script, tool_mean_s  # type: ignore[attr-defined]
        llm = self._engine._llm  # type: ignore[attr-defined]
        await llm.reset_prefix_cache()
        await llm.reset_mm_cache()
        await llm.reset_encoder_cache()

    async def bare(self, questions: Sequence[Question], n: int, step: int) -> int:
        """vLLM's AsyncLLM.generate on the same prompts, seeds and lengths, at most IN_FLIGHT at once; returns tokens generated."""
        from PIL import Image

        from rollout_workers.seeds import Seeds
        from rollout_workers.trajectory import pixels

        engine: Any = self._engine
        prompts = [(await self._prompt(q, evaluating=False)).tolist() for q in questions]
        images = [[Image.fromarray(pixels(image)) for image in q.images] for q in questions]
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(i: int, rollout: int) -> int:
            seed = Seeds(self._run_seed, step, questions[i].id, rollout).of_turn(0)
            params = engine._sampling_params(Sampling(seed, engine.script.tokens(seed)))
            prompt = {"prompt_token_ids": prompts[i], "multi_modal_data": {"image": images[i]}}
            tokens = 0
            async with slots:
                async for output in engine._llm.generate(
                    prompt, params, request_id=f"bare-{step}-{i}-{rollout}"
                ):
                    tokens += sum(len(part.token_ids) for part in output.outputs)
            return tokens

        return sum(
            await asyncio.gather(
                *[one(i, rollout) for i in range(len(questions)) for rollout in range(n)]
            )
        )

    async def lockstep(self, questions: Sequence[Question], n: int, step: int, turns: int) -> int:
        """The same rollouts batch by batch of IN_FLIGHT: all generate a turn, then all call their tool, and so on; returns tokens."""
        from rollout_workers.seeds import Seeds
        from rollout_workers.trajectory import pixels

        engine: Any = self._engine
        tokens = 0
        everyone = [(q, r) for q in questions for r in range(n)]
        for start in range(0, len(everyone), IN_FLIGHT):
            batch = everyone[start : start + IN_FLIGHT]
            histories = [await self._prompt(q, evaluating=False) for q, _ in batch]
            images = [[pixels(image) for image in q.images] for q, _ in batch]
            for turn in range(turns):
                seeds = [Seeds(self._run_seed, step, q.id, r).of_turn(turn) for q, r in batch]
                answers = await asyncio.gather(
                    *[
                        engine.generate(ids, pics, Sampling(seed, self._config.max_turn_tokens))
                        for ids, pics, seed in zip(histories, images, seeds, strict=True)
                    ]
                )
                tokens += sum(len(a.token_ids) for (a,) in answers)
                if turn + 1 < turns:
                    results = await asyncio.gather(
                        *[
                            self._tools.call("wait", {"seed": seed % 2**31}, [], ())
                            for seed in seeds
                        ]
                    )
                    seen = [self._chat.observation([(result.text, 0)]) for result in results]
                    histories = [
                        np.concatenate([h, a.token_ids, o])
                        for h, (a,), o in zip(histories, answers, seen, strict=True)
                    ]
        return tokens


def right(question: Question, answer: str | None) -> float:
    return float(answer is not None and "right" in answer)


@contextmanager
def engines(workers: int = 1, in_flight: int = IN_FLIGHT) -> Iterator[RolloutPool]:
    """A pool of bench workers on a Ray of its own, each with so many rollouts in flight."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        engine = CONFIG.engine.model_copy(update={"max_num_seqs": in_flight})
        config = CONFIG.model_copy(
            update={"workers": workers, "concurrency": in_flight, "engine": engine}
        )
        settings = WorkerSettings(MODEL, config, WaitingTools(), right, run_seed=1)
        pool = RolloutPool(settings, actor_class=BenchWorker)
        try:
            pool.ready()
            yield pool
        finally:
            pool.shutdown()
    finally:
        ray.shutdown()


def ask(count: int, start: int = 0) -> list[Question]:
    """Questions of the embedded task, images in the object store."""
    from rollout_workers.trajectory import stored

    task = load_task(SmallDigitConfig())
    return [stored(task.train(index)) for index in range(start, start + count)]


def each(pool: RolloutPool, method: str, *arguments: Any) -> list[Any]:
    """Call a method on every worker and wait."""
    return ray.get(
        [getattr(worker, method).remote(*arguments) for worker in pool.workers], timeout=900
    )
