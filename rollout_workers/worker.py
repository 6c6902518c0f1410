"""A rollout worker: one engine, many rollouts in flight, groups and resamples out. The pool makes it a Ray actor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from rollout_workers.agent import (
    Limits,
    Response,
    Rollout,
    Unavailable,
    distinct_calls,
    observed_images,
    turn_index,
)
from rollout_workers.chat import Chat, in_chat_thread
from rollout_workers.engine import VLLMEngine
from rollout_workers.faults import InjectedFault
from rollout_workers.interfaces import (
    Called,
    CallTool,
    ContextFull,
    Engine,
    EngineFailure,
    Generation,
    Sampling,
    ToolAnswer,
    Tools,
)
from rollout_workers.seeds import Seeds
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.slots import Slots
from rollout_workers.trajectory import (
    EndReason,
    ForkPoint,
    Group,
    Ids,
    Pixels,
    Question,
    Resample,
    RolloutStats,
    Segment,
    SpecialTokens,
    Trajectory,
    frozen_prefix,
    pixels,
)

T = TypeVar("T")


class RolloutWorker:
    """All methods run on the actor's event loop; construction blocks until the engine serves."""

    def __init__(
        self,
        index: int,
        settings: WorkerSettings,
        engine_factory: Callable[..., Engine] = VLLMEngine,
    ) -> None:
        config = settings.config
        self._index = index
        self._config = config
        self._tools = settings.tools
        self._evaluation_tools: Tools | None = None
        self._system = settings.system
        self._verify = settings.verify
        self._run_seed = settings.run_seed
        self._chat = Chat.load(settings.model)
        self._engine = engine_factory(
            settings.model,
            config,
            self._chat.tokens,
            seed=settings.run_seed,
            want_entropies=settings.want_entropies,
        )
        self._limits = Limits(
            config.max_turns, config.max_turn_tokens, config.max_calls_per_turn, config.deadline_s
        )
        self._slots = Slots(config.concurrency_min, config.concurrency, self._engine.load)
        self._faults = settings.faults
        self._torn = False
        self._started = time.monotonic()
        self._schemas: dict[
            bool, list[dict[str, Any]]
        ] = {}  # of training (False) and of evaluations (True)

    async def ready(self) -> SpecialTokens:
        """Returns once the engine serves."""
        return self._chat.tokens

    async def rollout(
        self,
        question: Question,
        n: int,
        step: int,
        *,
        temperature: float | None = None,
        evaluating: bool = False,
    ) -> Group:
        """N scored rollouts of a question. One that ends by an infrastructure failure after all retries has no reward.

        `evaluating`: with the tools that evaluations alone offer.
        """
        prompt_ids, images = (
            await self._prompt(question, evaluating=evaluating),
            await _pixels(question),
        )

        async def one(rollout: int) -> Trajectory:
            seeds = Seeds(self._run_seed, step, question.id, rollout)

            def start() -> Awaitable[Response]:
                return self._start(
                    question,
                    prompt_ids,
                    images,
                    [],
                    seeds.of_turn,
                    temperature,
                    self._caller(step, evaluating=evaluating),
                ).play()

            async with self._slots.hold():
                response = await self._with_retries(start)
            return await self._scored(question, rollout, prompt_ids, response, None)

        return Group(
            question=question,
            rollouts=tuple(await _all([one(i) for i in range(n)])),
            worker=self._index,
        )

    async def fork(
        self,
        question: Question,
        source: Trajectory,
        request: ForkRequest,
        step: int,
    ) -> Resample:
        """K scored continuations of the source's first `prefix_tokens` response tokens; none where they begin with fewer distinct calls
        than `request.min_distinct_calls`, which is seen before any is run.

        The first turn is one n=K request with the source's own ids and images, which the engine that generated the
        source serves from its prefix cache.
        """
        k, prefix_tokens = request.k, request.prefix_tokens
        images = await _pixels(question)
        prefix = frozen_prefix(source, prefix_tokens)

        def seeds(fork: int) -> Seeds:
            return Seeds(self._run_seed, step, question.id, source.rollout, (prefix_tokens, fork))

        async def one(fork: int, first: Generation, begun: float) -> Response:
            def start() -> Awaitable[Response]:
                return self._start(
                    question,
                    source.prompt_ids,
                    images,
                    prefix,
                    seeds(fork).of_turn,
                    None,
                    self._caller(step),
                    begun,
                ).play(first)

            return await self._with_retries(start)

        async with self._slots.hold(k, urgent=True):
            begun = time.monotonic()
            first = await self._first_turns(
                source.prompt_ids, images, prefix, k, seeds(0).of_turn(turn_index(prefix))
            )
            if isinstance(first, EndReason):
                responses = [Response(prefix, first, None, RolloutStats())] * k
            elif distinct_calls(first, self._chat.tokens) < request.min_distinct_calls:
                responses = []
            else:
                responses = await _all(
                    [one(i, generation, begun) for i, generation in enumerate(first)]
                )
        continuations = [
            self._scored(
                question,
                source.rollout,
                source.prompt_ids,
                response,
                ForkPoint(source.rollout, i, prefix_tokens),
            )
            for i, response in enumerate(responses)
        ]
        return Resample(
            source=source.rollout,
            prefix_tokens=prefix_tokens,
            continuations=tuple(await _all(continuations)),
        )

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Connect the engine to the learner; `info` is the transfer backend's own."""
        await self._engine.init_weight_transfer(info)

    async def start_weight_update(self) -> None:
        """Returns when no request is in flight; new ones wait for `finish_weight_update`."""
        await self._engine.start_weight_update()

    async def update_weights(self, payload: dict[str, Any]) -> None:
        """Load one bucket of tensors. One that fails, or takes longer than `health_s`, shows in `ping`."""
        async with self._updating():
            await self._faults.reach("weights", self._index)
            await self._engine.update_weights(payload)

    async def finish_weight_update(self, version: int) -> int:
        """The new policy serves, with empty caches. Returns the version that the engine confirms."""
        async with self._updating():
            return await self._engine.finish_weight_update(version)

    async def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Names of the engine's parameters that differ from the tensors of a shared-memory bucket; [] where all are equal."""
        return await self._engine.differing_weights(payload)

    async def ping(self) -> None:
        """Returns when the engine's own process answers; raises where it is dead, or may hold weights of two policies."""
        if self._torn:
            raise RuntimeError("a weight update failed")
        await self._faults.reach("ping", self._index)
        await self._engine.alive()

    async def engine_stats(self) -> dict[str, float]:
        """Since the start: generated_tokens, prompt_tokens, cached_tokens, idle_seconds, seconds; now: requests running, rollouts
        queued for one of the `slots`."""
        own = {
            "seconds": time.monotonic() - self._started,
            "queued": self._slots.queued,
            "slots": self._slots.limit,
        }
        return self._engine.stats() | own

    async def sleep(self) -> None:
        """The engine gives its memory away; see `VLLMEngine.sleep`."""
        await self._engine.sleep()

    async def wake(self, tag: str) -> None:
        """It takes the memory of `weights`, or of `kv_cache`, back."""
        await self._engine.wake(tag)

    async def shutdown(self) -> None:
        """End the engine."""
        self._engine.shutdown()

    async def _prompt(self, question: Question, *, evaluating: bool) -> Ids:
        if evaluating not in self._schemas:
            self._schemas[evaluating] = await asyncio.wait_for(
                self._tools_for(evaluating=evaluating).schemas(), self._config.deadline_s
            )
        return await in_chat_thread(
            self._chat.prompt,
            question.text,
            len(question.images),
            self._schemas[evaluating],
            self._system,
        )

    def _tools_for(self, *, evaluating: bool) -> Tools:
        if not evaluating:
            return self._tools
        self._evaluation_tools = self._evaluation_tools or self._tools.evaluating()
        return self._evaluation_tools

    def _start(
        self,
        question: Question,
        prompt_ids: Ids,
        images: Sequence[Pixels],
        segments: Sequence[Segment],
        seed: Callable[[int, int], int],
        temperature: float | None,
        call_tool: CallTool,
        begun: float | None = None,
    ) -> Rollout:
        return Rollout(
            chat=self._chat,
            generate=self._generate,
            call_tool=call_tool,
            limits=self._limits,
            prompt_ids=prompt_ids,
            question_images=images,
            tool_images=question.images,
            seed=seed,
            temperature=self._config.temperature if temperature is None else temperature,
            segments=list(segments),
            begun=time.monotonic() if begun is None else begun,
        )

    @asynccontextmanager
    async def _updating(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._config.health_s):
                yield
        except BaseException:
            self._torn = True
            raise

    async def _generate(
        self, prompt_ids: Ids, images: Sequence[Pixels], sampling: Sampling
    ) -> list[Generation]:
        try:
            await self._faults.reach("turn", self._index)
        except InjectedFault as fault:
            raise EngineFailure(str(fault)) from fault
        return await self._engine.generate(prompt_ids, images, sampling)

    def _caller(self, step: int, *, evaluating: bool = False) -> CallTool:
        """What calls the tools of a step's rollouts."""
        tools = self._tools_for(evaluating=evaluating)

        async def call(
            name: str, arguments: dict[str, Any], images: Sequence[Any], earlier: Sequence[Called]
        ) -> ToolAnswer:
            if not evaluating and self._config.out(name, step):
                return Unavailable(name)
            await self._faults.reach("tool", self._index)
            return await tools.call(name, arguments, images, earlier)

        return call

    async def _first_turns(
        self,
        prompt_ids: Ids,
        images: Sequence[Pixels],
        prefix: Sequence[Segment],
        k: int,
        seed: int,
    ) -> list[Generation] | EndReason:
        """The first turns of a fork's K continuations, or why there are none."""
        ids = np.concatenate([prompt_ids, *[s.token_ids for s in prefix]])
        end = EndReason.ENGINE_FAILURE
        for _ in range(1 + self._config.retries):
            try:
                async with asyncio.timeout(self._config.deadline_s):
                    return await self._generate(
                        ids,
                        [*images, *observed_images(prefix)],
                        Sampling(seed, self._config.max_turn_tokens, k, self._config.temperature),
                    )
            except TimeoutError:
                end = EndReason.DEADLINE
            except EngineFailure:
                end = EndReason.ENGINE_FAILURE
            except ContextFull:
                return EndReason.OUT_OF_TOKENS
        return end

    async def _with_retries(self, attempt: Callable[[], Awaitable[Response]]) -> Response:
        """Run again what ended by an infrastructure failure: seeds are derived, so the policy's choices stay the same."""
        response = await attempt()
        for _ in range(self._config.retries):
            if not response.end.infrastructure:
                break
            response = await attempt()
        return response

    async def _scored(
        self,
        question: Question,
        rollout: int,
        prompt_ids: Ids,
        response: Response,
        fork: ForkPoint | None,
    ) -> Trajectory:
        trajectory = Trajectory(
            question_id=question.id,
            rollout=rollout,
            prompt_ids=prompt_ids,
            segments=response.segments,
            end=response.end,
            answer=response.answer,
            fork=fork,
            stats=response.stats,
        )
        if response.end.infrastructure:
            return trajectory
        fault = ""
        for _ in range(1 + self._config.retries):
            try:
                async with asyncio.timeout(self._config.verify_s):
                    reward = float(
                        await _in_own_thread(partial(self._verify, question, response.answer))
                    )
                if math.isfinite(reward):
                    return replace(trajectory, reward=reward)
                fault = f"gave {reward}"
            except Exception as error:  # a verifier is the user's: anything may happen in it
                fault = f"{type(error).__name__}: {error}"
        return replace(
            trajectory,
            end=EndReason.VERIFIER_FAILURE,
            stats=replace(trajectory.stats, fault=" ".join(fault.split())[:500]),
        )


def _in_own_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """In a pool of threads, one that hangs would hold a place for ever; this one is left behind at its deadline."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # from here on nobody can cancel it, and the thread can always settle it

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="verifier", daemon=True).start()
    return asyncio.wrap_future(future)


async def _pixels(question: Question) -> list[Pixels]:
    return await asyncio.to_thread(lambda: [pixels(image) for image in question.images])


async def _all(awaitables: Sequence[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*awaitables))
