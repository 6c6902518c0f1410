"""How many rollouts one engine works on: as many as it has room for, between the recipe's bounds."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

INTERVAL_S = 0.5
"""Seconds between two looks at the engine: several of its iterations."""
FULL = 0.95
"""Share of the KV cache in use above which the engine is about to evict what it works on."""


@dataclass(frozen=True)
class EngineLoad:
    """What an engine last reported."""

    waiting: int = 0  # requests that found no room
    kv_use: float = 0.0  # share of the KV cache in use


class Slots:
    """A limit on rollouts in flight that follows the engine: a rollout that waits for a tool leaves room for another one.

    Where requests wait inside the engine or its KV cache is full the limit falls by a tenth; where all slots are in use and
    nothing waits it rises by a sixteenth (additive increase, multiplicative decrease). It starts at `most`.
    """

    def __init__(
        self,
        least: int,
        most: int,
        load: Callable[[], EngineLoad],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = most
        self.in_use = 0
        self._least, self._most, self._load, self._clock = min(least, most), most, load, clock
        self._looked = clock()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._urgent: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def queued(self) -> int:
        """Rollouts that wait for a slot."""
        return sum(count for count, future in (*self._urgent, *self._waiting) if not future.done())

    @asynccontextmanager
    async def hold(self, count: int = 1, *, urgent: bool = False) -> AsyncIterator[None]:
        """Wait for `count` slots, in order of arrival, urgent ones first. More than the limit are let in when nothing else is."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._urgent if urgent else self._waiting).append((count, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._release(count)
            raise
        try:
            yield
        finally:
            self._release(count)

    def _release(self, count: int) -> None:
        self.in_use -= count
        self._adjust()
        self._admit()

    def _admit(self) -> None:
        for queue in (self._urgent, self._waiting):
            while queue:
                count, future = queue[0]
                if not future.done() and self.in_use and self.in_use + count > self.limit:
                    return
                queue.popleft()
                if not future.done():
                    self.in_use += count
                    future.set_result(None)

    def _adjust(self) -> None:
        now = self._clock()
        if now - self._looked < INTERVAL_S:
            return
        self._looked = now
        load = self._load()
        if load.waiting or load.kv_use > FULL:
            self.limit = max(self._least, self.limit * 9 // 10)
        elif self.queued:
            self.limit = min(self._most, self.limit + max(1, self.limit // 16))
