"""Real engines under control, and the two baselines that share them.

The worker path is compared with bare vLLM and with a loop in lockstep, on the same engine, in the
same process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from PIL import Image

from axpo.tasks.embedded.small_digit import SmallDigitConfig
from benchmarks.cluster import local_ray
from benchmarks.scripted import Script, ScriptedEngine, WaitingTools, right
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.interfaces import Sampling
from rollout_workers.pictures import Picture, picture
from rollout_workers.pool import RolloutPool
from rollout_workers.seeds import Seeds
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import Ids, Pixels, Question, pixels, stored
from rollout_workers.worker import RolloutWorker

MODEL = "axpo/models/qwen3-vl-tiny"
IN_FLIGHT = 64
BLOCK = 32
DEADLINE_S = 900.0
# Eager: compiling takes a minute on a CPU, and all sides of a comparison do without it.
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


class BenchWorker(RolloutWorker):
    """A rollout worker on a scripted engine, with the two baselines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options | {"engine_factory": ScriptedEngine})

    async def set(self, script: Script, tool_mean_s: float = 0.0) -> None:
        """Begin a measurement: a script, and empty caches."""
        engine, tools = self._scripted()
        engine.script = script
        tools.mean_s = tool_mean_s
        # What one side computed must not be in the other's caches.
        await engine._llm.reset_prefix_cache()
        await engine._llm.reset_mm_cache()
        await engine._llm.reset_encoder_cache()

    async def bare(self, questions: Sequence[Question], n: int, step: int) -> int:
        """Run the first turns by vLLM's AsyncLLM.generate, at most IN_FLIGHT at once.

        Prompts, seeds and lengths are those of the worker path.

        Returns:
            How many tokens were generated.
        """
        engine, _ = self._scripted()
        prompts = [(await self._prompt_of(question)).tolist() for question in questions]
        images = [_images(question) for question in questions]
        # The worker path has as many slots.
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(i: int, rollout: int) -> int:
            seed = Seeds(self._run_seed, step, questions[i].id, rollout).of_turn(0)
            params = engine._sampling_params(Sampling(seed, engine.script.tokens(seed)))
            prompt = {
                "prompt_token_ids": prompts[i],
                "multi_modal_data": {"image": images[i]},
            }
            async with slots:
                name = f"bare-{step}-{i}-{rollout}"
                return await _generated(engine._llm.generate(prompt, params, request_id=name))

        rollouts = [(i, rollout) for i in range(len(questions)) for rollout in range(n)]
        return sum(await asyncio.gather(*[one(i, rollout) for i, rollout in rollouts]))

    async def lockstep(self, questions: Sequence[Question], n: int, step: int, turns: int) -> int:
        """Run the rollouts in batches of IN_FLIGHT: all generate, then all call their tool.

        Returns:
            How many tokens were generated.
        """
        everyone = [(question, rollout) for question in questions for rollout in range(n)]
        tokens = 0
        for start in range(0, len(everyone), IN_FLIGHT):
            tokens += await self._lockstep_batch(everyone[start : start + IN_FLIGHT], step, turns)
        return tokens

    async def _lockstep_batch(
        self, batch: Sequence[tuple[Question, int]], step: int, turns: int
    ) -> int:
        engine, _ = self._scripted()
        histories = [await self._prompt_of(question) for question, _ in batch]
        images = [_pictures(question) for question, _ in batch]
        seeds = [Seeds(self._run_seed, step, question.id, rollout) for question, rollout in batch]
        most = self._config.max_turn_tokens
        tokens = 0
        for turn in range(turns):
            samplings = [Sampling(of_rollout.of_turn(turn), most) for of_rollout in seeds]
            requests = [
                engine.generate(history, shown, sampling)
                for history, shown, sampling in zip(histories, images, samplings, strict=True)
            ]
            answers = [generation for (generation,) in await asyncio.gather(*requests)]
            tokens += sum(len(answer.token_ids) for answer in answers)
            if turn + 1 < turns:
                seen = await self._observations([sampling.seed for sampling in samplings])
                histories = [
                    np.concatenate([history, answer.token_ids, observation])
                    for history, answer, observation in zip(histories, answers, seen, strict=True)
                ]
        return tokens

    async def _observations(self, seeds: Sequence[int]) -> list[Ids]:
        """Call the tool once for each seed and return the observations."""
        calls = [self._tools.call("wait", {"seed": seed % 2**31}, [], ()) for seed in seeds]
        results = await asyncio.gather(*calls)
        return [self._chat.observation([(result.text, 0)]) for result in results]

    async def _prompt_of(self, question: Question) -> Ids:
        return await self._prompt(question, evaluating=False)

    def _scripted(self) -> tuple[ScriptedEngine, WaitingTools]:
        # As a worker knows them they are protocols; here they can be set.
        engine, tools = self._engine, self._tools
        assert isinstance(engine, ScriptedEngine)
        assert isinstance(tools, WaitingTools)
        return engine, tools


def _pixels(question: Question) -> list[Pixels]:
    return [pixels(image) for image in question.images]


def _pictures(question: Question) -> list[Picture]:
    return [picture(image) for image in _pixels(question)]


def _images(question: Question) -> list[Image.Image]:
    return [Image.fromarray(image) for image in _pixels(question)]


async def _generated(outputs: AsyncIterator[Any]) -> int:
    """Return how many tokens a request generated."""
    tokens = 0
    async for output in outputs:
        tokens += sum(len(part.token_ids) for part in output.outputs)
    return tokens


@contextmanager
def engines(workers: int = 1, in_flight: int = IN_FLIGHT) -> Iterator[RolloutPool]:
    """Start a pool of bench workers on a Ray of its own.

    Args:
        workers: engines.
        in_flight: rollouts in flight on each.
    """
    # An engine that decodes fewer at once than are in flight would queue them itself.
    engine = CONFIG.engine.model_copy(update={"max_num_seqs": in_flight})
    config = CONFIG.model_copy(
        update={"workers": workers, "concurrency": in_flight, "engine": engine}
    )
    with local_ray():
        settings = WorkerSettings(MODEL, config, WaitingTools(), right, run_seed=1)
        pool = RolloutPool(settings, actor_class=BenchWorker)
        try:
            pool.ready()
            yield pool
        finally:
            pool.shutdown()


def ask(count: int, start: int = 0) -> list[Question]:
    """Return questions of the embedded task, with their images in the object store."""
    task = SmallDigitConfig().load()
    return [stored(task.train(index)) for index in range(start, start + count)]


def each(pool: RolloutPool, method: str, *arguments: Any) -> list[Any]:
    """Call a method on every worker and wait."""
    calls = [getattr(worker, method).remote(*arguments) for worker in pool.workers]
    answers: list[Any] = ray.get(calls, timeout=DEADLINE_S)
    return answers
