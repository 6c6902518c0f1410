"""A rollout worker: one engine, many rollouts in flight, groups and resamples out.

The pool makes it a Ray actor, which hands the images of tools over apart from its answers
(`rollout_workers/handing_over.py`). Its weight methods are the middle of a corridor that is
described in `rollout_workers/weight_transfer.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache

from axpo.spans import span
from rollout_workers.agent import Limits, Response, Scene, Unavailable
from rollout_workers.chat import Chat, in_chat_thread
from rollout_workers.context import Context
from rollout_workers.engine import VLLMEngine
from rollout_workers.faults import InjectedFault
from rollout_workers.image_rule import image_rule
from rollout_workers.importing import note_imported
from rollout_workers.interfaces import (
    Called,
    CallTool,
    Engine,
    EngineFailure,
    Generation,
    Sampling,
    ToolAnswer,
    Tools,
)
from rollout_workers.pictures import Picture, Pictures, picture
from rollout_workers.playing import play_continuations, play_rollout
from rollout_workers.scoring import Scorer
from rollout_workers.seeds import Seeds
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.slots import Slots
from rollout_workers.trajectory import (
    ForkPoint,
    Group,
    Ids,
    LazyImage,
    Question,
    Resample,
    SpecialTokens,
    Trajectory,
    UnusableQuestion,
    frozen_prefix,
    pixels,
)

T = TypeVar("T")
DIGESTS = 4096
"""Images whose digests a worker remembers."""


class RolloutWorker:
    """Make groups and resamples on one engine.

    All methods run on the actor's event loop. Construction blocks until the engine serves.
    """

    def __init__(
        self,
        index: int,
        settings: WorkerSettings,
        engine_factory: Callable[..., Engine] = VLLMEngine,
    ) -> None:
        """Start the engine.

        Args:
            index: id of this worker; a worker that replaces another has an id of its own.
            settings: what all workers of the run share.
            engine_factory: stands in for VLLMEngine in tests.
        """
        config = settings.config
        self._index = index
        self._config = config
        rule = image_rule(settings.model, settings.images)
        self._context = Context(rule, config.max_context_tokens)
        # By the id of an image in Ray's object store: its digest. A question's forks and its
        # rollouts fetch it separately.
        self._digests: LRUCache[str, str] = LRUCache(DIGESTS)
        self._system = settings.system
        self._run_seed = settings.run_seed
        self._tools = settings.tools
        self._evaluation_tools: Tools | None = None
        # The schemas of the tools of training (False) and of evaluations (True).
        self._schemas: dict[bool, list[dict[str, Any]]] = {}
        # The engine's own process has the most to do: it begins first.
        if engine_factory is VLLMEngine:
            VLLMEngine.prepare(settings)
            VLLMEngine.import_packages()
            note_imported(index)
        with span("tokenizer"):
            self._chat = Chat.load(settings.model)
        self._engine = engine_factory(settings, self._chat.tokens)
        self._limits = Limits(
            config.max_turns,
            config.max_turn_tokens,
            config.max_calls_per_turn,
            config.deadline_s,
            config.max_tool_tokens,
            config.retries,
        )
        self._slots = Slots(config.concurrency_min, config.concurrency, self._engine.load)
        self._scorer = Scorer(settings.verify, config.verify_s, 1 + config.retries)
        self._faults = settings.faults
        self._update_failed = False
        self._started = time.monotonic()

    def __repr__(self) -> str:
        # What Ray calls this process, in logs and errors.
        return f"engine-{self._index}"

    async def ready(self) -> SpecialTokens:
        """Return once the engine serves."""
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
        """Make the scored rollouts of a question.

        A rollout that ends by an infrastructure failure after all retries has no reward.

        Args:
            question: what is asked.
            n: number of rollouts.
            step: counts into the seeds, and decides which tools are out of service.
            temperature: of sampling; the recipe's if None.
            evaluating: offer the tools of evaluations too.

        Raises:
            UnusableQuestion: images and text do not fit the context.
        """
        scene = await self._scene(
            question,
            await self._prompt(question, evaluating=evaluating),
            self._caller(step, evaluating=evaluating),
            self._config.temperature if temperature is None else temperature,
        )
        self._check_fits(scene)

        async def scored_rollout(index: int) -> Trajectory:
            seeds = Seeds(self._run_seed, step, question.id, index)
            # Scoring needs no slot: the engine has nothing to do with it.
            async with self._slots.hold():
                response = await play_rollout(scene, seeds)
            trajectory = scene.trajectory(response, index, fork=None)
            return await self._scorer.scored(question, trajectory)

        rollouts = await _all([scored_rollout(index) for index in range(n)])
        return Group(question=question, rollouts=tuple(rollouts), worker=self._index)

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> Resample:
        """Make the scored continuations of a prefix: rule 4 of docs/method.md.

        The first turn is one n=K request with the source's own ids and images. The engine that
        generated the source serves it from its prefix cache.

        Args:
            question: the source's.
            source: the rollout that is forked; what follows the prefix is not looked at.
            request: which prefix, and how many continuations.
            step: counts into the seeds, and decides which tools are out of service.

        Returns:
            The continuations. There are none if they begin with too few distinct calls, which is
            seen before any tool runs.
        """
        scene = await self._scene(
            question, source.prompt_ids, self._caller(step), self._config.temperature
        )
        prefix = frozen_prefix(source, request.prefix_tokens)
        rollout_seeds = Seeds(self._run_seed, step, question.id, source.rollout)
        seeds = [rollout_seeds.of_fork(request.prefix_tokens, k) for k in range(request.k)]
        # Urgent, because the prefix is in the engine's cache now.
        async with self._slots.hold(request.k, urgent=True):
            responses = await play_continuations(scene, prefix, seeds, request.min_distinct_calls)

        async def scored_continuation(k: int, response: Response) -> Trajectory:
            point = ForkPoint(source.rollout, k, request.prefix_tokens)
            trajectory = scene.trajectory(response, source.rollout, point)
            return await self._scorer.scored(question, trajectory)

        continuations = await _all(
            [scored_continuation(k, response) for k, response in enumerate(responses)]
        )
        return Resample(source.rollout, request.prefix_tokens, tuple(continuations))

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Connect the engine to the learner; `info` is the transfer backend's own."""
        await self._engine.init_weight_transfer(info)

    async def start_weight_update(self) -> None:
        """Return when no request is in flight; new ones wait for `finish_weight_update`."""
        await self._engine.start_weight_update()

    async def update_weights(self, payload: dict[str, Any]) -> None:
        """Load one bucket of tensors, or adapters.

        If this fails, or takes longer than `health_s`, `ping` raises from then on.
        """
        async with self._updating():
            await self._faults.reach("weights", self._index)
            await self._engine.update_weights(payload)

    async def finish_weight_update(self, version: int) -> int:
        """Serve the new policy, with empty caches; return the version that the engine confirms."""
        async with self._updating():
            return await self._engine.finish_weight_update(version)

    async def differing_weights(self, payload: dict[str, Any]) -> list[str]:
        """Return the names of the engine's parameters that differ from a bucket's tensors.

        The bucket is one of shared memory.
        """
        return await self._engine.differing_weights(payload)

    async def ping(self) -> None:
        """Return when the engine's own process answers.

        Raises if it is dead, or if the engine may hold weights of two policies.
        """
        # It may still answer, but it must be replaced: it may mix two policies.
        if self._update_failed:
            raise RuntimeError("a weight update failed")
        await self._faults.reach("ping", self._index)
        await self._engine.alive()

    async def engine_stats(self) -> dict[str, float]:
        """Return counts.

        Since the start: generated_tokens, prompt_tokens, cached_tokens, idle_seconds, seconds.
        Now: requests running, and rollouts queued for one of the `slots`.
        """
        own = {
            "seconds": time.monotonic() - self._started,
            "queued": self._slots.queued,
            "slots": self._slots.limit,
        }
        return self._engine.stats() | own

    async def sleep(self) -> None:
        """Let the engine give its memory away; see `VLLMEngine.sleep`."""
        await self._engine.sleep()

    async def wake(self, tag: str) -> None:
        """Let the engine take back the memory of `weights` or of `kv_cache`."""
        await self._engine.wake(tag)

    async def shutdown(self) -> None:
        """End the engine."""
        self._engine.shutdown()

    async def _scene(
        self, question: Question, prompt_ids: Ids, call_tool: CallTool, temperature: float
    ) -> Scene:
        return Scene(
            chat=self._chat,
            generate=self._generate,
            call_tool=call_tool,
            limits=self._limits,
            question=question,
            prompt_ids=prompt_ids,
            pictures=Pictures(await asyncio.to_thread(self._pictures, question)),
            temperature=temperature,
        )

    def _pictures(self, question: Question) -> list[Picture]:
        """Fetch a question's images, and hash those that this worker has not seen."""
        pictures = []
        for image in question.images:
            stored_as = "" if isinstance(image, np.ndarray | LazyImage) else image.hex()
            shown = picture(pixels(image), self._digests.get(stored_as))
            if stored_as:
                self._digests[stored_as] = shown.digest
            pictures.append(shown)
        return pictures

    def _check_fits(self, scene: Scene) -> None:
        """Raise UnusableQuestion if the prompt, images expanded, leaves no room for a token."""
        sizes = [picture.image.size for picture in scene.pictures.question]
        try:
            self._context.check(len(scene.prompt_ids) - len(sizes), sizes)
        except ValueError as error:
            raise UnusableQuestion(f"question {scene.question.id}: {error}") from None

    async def _prompt(self, question: Question, *, evaluating: bool) -> Ids:
        # Tools are asked once, at the first rollout: they may start later than the worker.
        if evaluating not in self._schemas:
            tools = self._tools_for(evaluating=evaluating)
            self._schemas[evaluating] = await asyncio.wait_for(
                tools.schemas(), self._config.deadline_s
            )
        return await in_chat_thread(
            self._chat.prompt,
            question.text,
            question.places,
            self._schemas[evaluating],
            self._system,
        )

    def _tools_for(self, *, evaluating: bool) -> Tools:
        if not evaluating:
            return self._tools
        self._evaluation_tools = self._evaluation_tools or self._tools.evaluating()
        return self._evaluation_tools

    def _caller(self, step: int, *, evaluating: bool = False) -> CallTool:
        """Return what calls the tools of a step's rollouts."""
        tools = self._tools_for(evaluating=evaluating)

        async def call(
            name: str, arguments: dict[str, Any], images: Sequence[Any], earlier: Sequence[Called]
        ) -> ToolAnswer:
            if not evaluating and self._config.out(name, step):
                return Unavailable(name)
            await self._faults.reach("tool", self._index)
            return await tools.call(name, arguments, images, earlier)

        return call

    async def _generate(
        self, prompt_ids: Ids, images: Sequence[Picture], sampling: Sampling
    ) -> list[Generation]:
        try:
            await self._faults.reach("turn", self._index)
        except InjectedFault as fault:
            raise EngineFailure(str(fault)) from fault
        return await self._engine.generate(prompt_ids, images, sampling)

    @asynccontextmanager
    async def _updating(self) -> AsyncIterator[None]:
        """Remember if a part of a weight update fails or takes too long."""
        try:
            async with asyncio.timeout(self._config.health_s):
                yield
        # Cancelled or timed out, too: the engine may hold a part of the new weights.
        except BaseException:
            self._update_failed = True
            raise


async def _all(awaitables: Sequence[Awaitable[T]]) -> list[T]:
    return list(await asyncio.gather(*awaitables))
