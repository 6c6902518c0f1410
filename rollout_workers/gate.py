"""A gate before the engine: requests pass while it is open, and a weight update closes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Count the requests inside, and hold new ones back while the gate is closed.

    It belongs to one event loop.
    """

    def __init__(self) -> None:
        self.inside = 0
        """Requests that have passed and are not done."""
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._idle_seconds = 0.0
        self._idle_since = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether new requests pass."""
        return self._open.is_set()

    @property
    def idle_seconds(self) -> float:
        """Seconds without a request inside, since the start."""
        now = 0.0 if self.inside else time.monotonic() - self._idle_since
        return self._idle_seconds + now

    def open(self) -> None:
        """Let requests pass again."""
        self._open.set()

    def close(self) -> None:
        """Hold new requests back."""
        self._open.clear()

    async def empty(self) -> None:
        """Wait until no request is inside."""
        await self._empty.wait()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Wait until the gate is open, and be inside until the end of the block."""
        await self._open.wait()
        # The first request inside ends the idle time, and the last one begins it again.
        if not self.inside:
            self._idle_seconds += time.monotonic() - self._idle_since
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._idle_since = time.monotonic()
                self._empty.set()
