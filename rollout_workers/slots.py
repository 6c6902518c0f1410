"""How many rollouts one engine works on: as many as it has room for, within the recipe's bounds."""

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
    """A limit on rollouts in flight that follows the engine.

    A rollout that waits for a tool leaves room for another one. The limit falls by a tenth if
    requests wait inside the engine or its KV cache is full. It rises by a sixteenth if all slots
    are in use and nothing waits (additive increase, multiplicative decrease). It starts at `most`.
    """

    def __init__(
        self,
        least: int,
        most: int,
        load: Callable[[], EngineLoad],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with all slots free.

        Args:
            least: the limit does not fall below this, however full the engine.
            most: the limit does not rise above this.
            load: gives what the engine last reported.
            clock: gives seconds; tests bring their own.
        """
        self.limit = most
        self.in_use = 0
        self._least = min(least, most)
        self._most = most
        self._load = load
        self._clock = clock
        self._looked = clock()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._urgent: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def queued(self) -> int:
        """How many rollouts wait for a slot."""
        return sum(count for count, future in (*self._urgent, *self._waiting) if not future.done())

    @asynccontextmanager
    async def hold(self, count: int = 1, *, urgent: bool = False) -> AsyncIterator[None]:
        """Hold slots during a block; wait for them in order of arrival, urgent ones first.

        More than the limit are let in when nothing else is in flight.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._urgent if urgent else self._waiting
        queue.append((count, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            # Cancelled after the slots were given: nobody else would give them back.
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
                # Something must be in flight to wait for; else more than the limit are let in.
                full = self.in_use and self.in_use + count > self.limit
                if full and not future.done():
                    return
                queue.popleft()
                if not future.done():  # else it was cancelled
                    self.in_use += count
                    future.set_result(None)

    def _adjust(self) -> None:
        # A look that comes sooner would see the same few iterations again.
        now = self._clock()
        if now - self._looked < INTERVAL_S:
            return
        self._looked = now
        load = self._load()
        if load.waiting or load.kv_use > FULL:
            self.limit = max(self._least, self.limit * 9 // 10)
        elif self.queued:
            self.limit = min(self._most, self.limit + max(1, self.limit // 16))
