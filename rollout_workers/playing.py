"""Play rollouts and continuations to their ends, and run again what infrastructure cut short.

Seeds are derived, so the policy's choices stay the same in another attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from rollout_workers.agent import Response, Rollout, Scene
from rollout_workers.images import ImagesLost
from rollout_workers.interfaces import ContextFull, EngineFailure, Generation, Sampling
from rollout_workers.seeds import Seeds
from rollout_workers.segments import distinct_calls, observed_images, turn_index
from rollout_workers.trajectory import EndReason, RolloutStats, Segment


async def play_rollout(scene: Scene, seeds: Seeds) -> Response:
    """Play one rollout from its prompt."""

    def attempt() -> Awaitable[Response]:
        return Rollout(scene, seeds.of_turn).play()

    return await _with_retries(attempt, scene.limits.retries)


async def play_continuations(
    scene: Scene, prefix: Sequence[Segment], seeds: Sequence[Seeds], min_distinct_calls: int
) -> list[Response]:
    """Play the continuations of a prefix, all first turns in one request.

    Args:
        scene: the source's.
        prefix: what the continuations keep of their source.
        seeds: of each continuation.
        min_distinct_calls: how many of the first calls must differ.

    Returns:
        One response per continuation. None at all if fewer first calls are distinct, which is
        seen before any tool runs.
    """
    begun = time.monotonic()
    first_turns = await _first_turns(scene, prefix, seeds)
    if isinstance(first_turns, EndReason):
        failed = Response(tuple(prefix), first_turns, None, RolloutStats())
        return [failed] * len(seeds)
    if distinct_calls(first_turns, scene.chat.tokens) < min_distinct_calls:
        return []

    async def play(own_seeds: Seeds, first: Generation) -> Response:
        def attempt() -> Awaitable[Response]:
            return Rollout(scene, own_seeds.of_turn, prefix, begun).play(first)

        return await _with_retries(attempt, scene.limits.retries)

    played = [play(own, first) for own, first in zip(seeds, first_turns, strict=True)]
    return list(await asyncio.gather(*played))


async def _first_turns(
    scene: Scene, prefix: Sequence[Segment], seeds: Sequence[Seeds]
) -> list[Generation] | EndReason:
    """Sample the first turns of all continuations in one request, or say why there are none."""
    limits = scene.limits
    ids = np.concatenate([scene.prompt_ids, *[segment.token_ids for segment in prefix]])
    # One request: the prompt is computed or looked up once, and the k-th child has seed + k.
    sampling = Sampling(
        seed=seeds[0].of_turn(turn_index(prefix)),
        max_tokens=limits.max_turn_tokens,
        n=len(seeds),
        temperature=scene.temperature,
    )
    end = EndReason.ENGINE_FAILURE
    for _ in range(1 + limits.retries):
        try:
            async with asyncio.timeout(limits.deadline_s):
                images = await scene.pictures.shown(observed_images(prefix))
                return await scene.generate(ids, images, sampling)
        except TimeoutError:
            end = EndReason.DEADLINE
        except (EngineFailure, ImagesLost):
            end = EndReason.ENGINE_FAILURE
        # Another attempt would find the context just as full.
        except ContextFull:
            return EndReason.OUT_OF_TOKENS
    return end


async def _with_retries(attempt: Callable[[], Awaitable[Response]], retries: int) -> Response:
    """Make attempts until one does not end by an infrastructure failure."""
    response = await attempt()
    for _ in range(retries):
        if not response.end.infrastructure:
            break
        response = await attempt()
    return response
