"""Runs the calls of one tool under its limits: queue, slots, rate, deadline, retries, circuit breaker, cache. Every call is answered."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from aiolimiter import AsyncLimiter
from cachetools import LRUCache

from tool_server.config import Breaker, Limits
from tool_server.stats import ToolStats
from tool_server.threads import in_thread
from tool_server.tool import (
    EarlierCall,
    Output,
    Pixels,
    Tool,
    ToolCall,
    ToolError,
    ToolResult,
    ToolStatus,
)

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.1
"""Before the first retry; doubles."""


class Circuit:
    """Open after so many failures in a row, for so many seconds; then one call at a time is let through until one succeeds."""

    def __init__(self, limits: Breaker, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def open_s(self) -> float:
        """Seconds for which no call is let through; 0 where the next one is."""
        return (
            max(self._until - self._clock(), 0.0)
            if self._failures >= self._limits.failures
            else 0.0
        )

    def admit(self) -> bool:
        """Whether a call may run now."""
        if self.open_s > 0:
            return False
        if self._failures >= self._limits.failures:
            self._until = (
                self._clock() + self._limits.seconds
            )  # this one tries; the others wait for what it finds
        return True

    def record(self, failed: bool) -> None:
        """What a call that ran found."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= self._limits.failures:
            self._until = self._clock() + self._limits.seconds


class ToolRunner:
    """One tool on one server. `servers` share the tool's rate."""

    def __init__(self, tool: Tool, limits: Limits, servers: int = 1) -> None:
        self.tool = tool
        self.limits = limits
        self._stats = ToolStats()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._inside = 0  # calls that wait or run
        self._left_behind: list[
            threading.Event
        ] = []  # set when a thread that outlived its deadline ends
        self._rate = AsyncLimiter(1, servers / limits.rate_per_s) if limits.rate_per_s else None
        self._circuit = Circuit(limits.breaker)
        self._cache: LRUCache[bytes, ToolResult] | None = None
        if limits.cache_mb:
            self._cache = LRUCache(limits.cache_mb * 2**20, getsizeof=_size)

    async def run(
        self, arguments: Any, images: Sequence[Any], earlier: Sequence[EarlierCall]
    ) -> ToolResult:
        """Answers one call; never raises. `images` are pixels or awaitables of pixels (Ray's references)."""
        try:
            parsed = self.tool.parse(arguments)
        except ToolError as error:
            return self._answer(ToolResult(ToolStatus.TOOL_ERROR, str(error)))
        except Exception as error:  # a tool of the user's
            return self._answer(self._failure(error))
        if self._circuit.open_s > 0:
            return self._answer(self._refusal())
        if self._inside >= self.limits.concurrency + self.limits.queue:
            return self._answer(
                ToolResult(
                    ToolStatus.OVERLOADED,
                    f"{self.tool.name}: {self.limits.queue} calls wait already",
                )
            )
        self._inside += 1
        queued = time.monotonic()
        try:
            async with self._slots:
                return await self._in_slot(arguments, parsed, images, earlier, queued)
        finally:
            self._inside -= 1

    def take_stats(self) -> ToolStats:
        """Numbers since they were last taken."""
        taken, self._stats = self._stats, ToolStats()
        return taken

    async def _in_slot(
        self,
        arguments: Any,
        parsed: Any,
        images: Sequence[Any],
        earlier: Sequence[EarlierCall],
        queued: float,
    ) -> ToolResult:
        wait = time.monotonic() - queued
        key = None
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                pixels = [
                    image if isinstance(image, np.ndarray) else await image for image in images
                ]
                if self._cache is not None:
                    key = await _digest(arguments, pixels)
        except Exception as error:
            return self._answer(self._failure(error, "its images were lost"))
        if (
            key is not None
            and self._cache is not None
            and (known := self._cache.get(key)) is not None
        ):
            return self._answer(known, cached=True)
        if self._rate is not None:
            await self._rate.acquire()
            wait = time.monotonic() - queued
        if not self._circuit.admit():  # it opened while this call waited
            return self._answer(self._refusal())
        self._left_behind = [ended for ended in self._left_behind if not ended.is_set()]
        if len(self._left_behind) >= 4 * self.limits.concurrency:
            return self._answer(
                ToolResult(
                    ToolStatus.INFRASTRUCTURE,
                    f"{self.tool.name}: {len(self._left_behind)} calls ran over and have not ended",
                )
            )
        call = ToolCall(parsed, pixels, earlier)
        result = await self._attempt(call)
        for retry in range(self.limits.retries):
            if result.status is not ToolStatus.INFRASTRUCTURE:
                break
            await asyncio.sleep(RETRY_PAUSE_S * 2**retry)
            result = await self._attempt(call)
        self._circuit.record(
            failed=result.status in (ToolStatus.INFRASTRUCTURE, ToolStatus.DEADLINE)
        )
        if (
            key is not None
            and self._cache is not None
            and result.status is ToolStatus.OK
            and _size(result) <= self._cache.maxsize
        ):
            self._cache[key] = result
        return self._answer(result, wait)

    async def _attempt(self, call: ToolCall) -> ToolResult:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.limits.deadline_s) as deadline:
                text, images = self._capped(await self._invoke(call))
            status = ToolStatus.OK
        except ToolError as error:
            status, text, images = ToolStatus.TOOL_ERROR, self._cut(str(error)), ()
        except Exception as error:
            if deadline.expired():
                status, text, images = (
                    ToolStatus.DEADLINE,
                    f"{self.tool.name} ran longer than {self.limits.deadline_s:g} s",
                    (),
                )
            else:
                return self._failure(error, seconds=time.monotonic() - started)
        return ToolResult(status, text, images, time.monotonic() - started)

    async def _invoke(self, call: ToolCall) -> Output:
        if inspect.iscoroutinefunction(self.tool.run):
            return await self.tool.run(call)
        ended = threading.Event()

        def run() -> Any:
            try:
                return self.tool.run(call)
            finally:
                ended.set()

        try:
            output = await in_thread(run, f"tool-{self.tool.name}")
        except asyncio.CancelledError:
            self._left_behind.append(ended)
            raise
        return await output if inspect.isawaitable(output) else output

    def _capped(self, output: Output) -> Output:
        text, images = output
        if len(images) > self.limits.max_images:
            text += f"\n[{len(images) - self.limits.max_images} more images left out]"
            images = images[: self.limits.max_images]
        return self._cut(text), images

    def _cut(self, text: str) -> str:
        over = len(text) - self.limits.max_characters
        return (
            text
            if over <= 0
            else f"{text[: self.limits.max_characters]}\n[{over} more characters cut]"
        )

    def _answer(
        self, result: ToolResult, wait: float | None = None, *, cached: bool = False
    ) -> ToolResult:
        self._stats.record(result, wait, cached=cached)
        return result

    def _failure(self, error: Exception, what: str = "", seconds: float = 0.0) -> ToolResult:
        log.warning("tool %s failed", self.tool.name, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        return ToolResult(
            ToolStatus.INFRASTRUCTURE,
            f"{self.tool.name} failed: {what + ': ' if what else ''}{reason}",
            (),
            seconds,
        )

    def _refusal(self) -> ToolResult:
        failed, seconds = self.limits.breaker.failures, self._circuit.open_s
        return ToolResult(
            ToolStatus.INFRASTRUCTURE,
            f"{self.tool.name}: circuit open for {seconds:.1f} s more, {failed} calls failed in a row",
        )


def _size(result: ToolResult) -> int:
    return 256 + 4 * len(result.text) + sum(image.nbytes for image in result.images)


async def _digest(arguments: Any, images: Sequence[Pixels]) -> bytes:
    def digest() -> bytes:
        total = hashlib.blake2b(json.dumps(arguments, sort_keys=True).encode(), digest_size=16)
        for image in images:
            total.update(repr(image.shape).encode())
            total.update(np.ascontiguousarray(image).data)
        return total.digest()

    # A photo of 3.6 MB takes 5 ms: not on the loop that serves everyone.
    return await in_thread(digest, "tool-digest") if images else digest()
