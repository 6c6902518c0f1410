"""The time that one rollout has: for sampling, for its calls to run, and for them to wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

WAITS = 3
"""How much longer than it samples a rollout may wait for tools.

With the defaults that is 900 s. If 64 rollouts make two calls each that sleep for 20 s, and four
run at once, the last one waits for 640 s.
"""

ALL = 1 + WAITS + 1
"""What sampling, waiting and running may take together, as a multiple of a rollout's seconds."""


class Deadline:
    """End a block that takes too long, as `asyncio.timeout` does, but keep calls of tools apart.

    How long a call waits for a free slot depends on what other rollouts make the tools do, and how
    long it runs on what the policy wrote. Neither may end a rollout as if the machine had failed.
    So the block's seconds are for sampling. Calls may wait `WAITS` times as long, and run as long
    again.
    """

    def __init__(self, seconds: float) -> None:
        """Start the time when the block is entered, in a task of asyncio."""
        self._timeout = asyncio.timeout(seconds)
        # What is left for calls; below 0 if the last one took more.
        self._waits_s = WAITS * seconds
        self._runs_s = seconds

    @property
    def calls_used_up(self) -> bool:
        """Return whether the calls have run as long as they may."""
        return self._runs_s <= 0

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    @contextmanager
    def calling(self, ran: list[float]) -> Iterator[None]:
        """Await calls of tools in the block.

        Args:
            ran: the block adds the seconds that each call ran; the rest is waiting.
        """
        started = time.monotonic()
        allowed_s = self._waits_s + self._runs_s
        self._move(allowed_s)
        try:
            yield
        finally:
            took_s = time.monotonic() - started
            self._move(took_s - allowed_s)
            # Calls that ran side by side may add up to more.
            ran_s = min(sum(ran), took_s)
            self._runs_s -= ran_s
            self._waits_s -= took_s - ran_s

    def _move(self, seconds: float) -> None:
        when = self._timeout.when()
        if when is not None and not self._timeout.expired():
            self._timeout.reschedule(when + seconds)
