"""Run the calls of one tool under its limits.

A call passes, in this order:

    parse      what the policy wrote; a fault is answered at once
    circuit    of a tool that keeps failing, calls are refused
    queue      at most `queue` calls wait
    slot       at most `concurrency` calls run; the call's images are fetched here
    cache      of a pure tool
    rate       calls started a second
    attempts   each within `deadline_s`; infrastructure failures are tried again

Every call is answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiolimiter import AsyncLimiter
from cachetools import LRUCache

from axpo.errors import ordinary
from axpo.texts import clean, printable
from tool_server.config import Breaker, Limits
from tool_server.functions import checked
from tool_server.images import MAX_ASPECT, fit
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
    ToolStopped,
)

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.1
"""Seconds before the first retry; doubles."""

LEFT_BEHIND = 4
"""Threads that may have outlived their deadlines, as a multiple of `concurrency`."""


MAX_TRACE = 20_000
"""Characters of a traceback that are logged, its end: a message may be of any length."""


class Circuit:
    """Open after so many failures in a row, for so many seconds.

    Then one call at a time is let through, until one succeeds.
    """

    def __init__(self, limits: Breaker, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._failures = 0  # in a row
        self._until = 0.0

    @property
    def open_s(self) -> float:
        """Seconds for which no call is let through; 0 if the next one is."""
        if self._failures < self._limits.failures:
            return 0.0
        return max(self._until - self._clock(), 0.0)

    def admit(self) -> bool:
        """Return whether a call may run now."""
        if self.open_s > 0:
            return False
        if self._failures >= self._limits.failures:
            # This call tries; the others wait for what it finds.
            self._until = self._clock() + self._limits.seconds
        return True

    def record(self, *, failed: bool) -> None:
        """Take note of what a call that ran found."""
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= self._limits.failures:
            self._until = self._clock() + self._limits.seconds


@dataclass(frozen=True)
class _Request:
    """A call on its way to a slot. `images` are pixels or awaitables of pixels."""

    arguments: Any  # as the policy wrote them
    parsed: Any
    images: Sequence[Pixels | Awaitable[Pixels]]
    earlier: Sequence[EarlierCall]
    queued: float  # time at which it joined the queue


class ToolRunner:
    """One tool on one server.

    A plain function that outlives its deadline cannot be stopped. Its thread is left behind and its
    slot is free again. If too many threads are left behind, calls are refused.
    """

    def __init__(self, tool: Tool, limits: Limits, servers: int = 1) -> None:
        """Make a runner. `servers` is how many servers share the tool's rate."""
        self.tool = tool
        self.limits = limits
        self._stats = ToolStats()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._inside = 0  # calls that wait or run
        # Of each thread that outlived its deadline: set when the thread ends.
        self._left_behind: list[threading.Event] = []
        self._rate: AsyncLimiter | None = None
        if limits.rate_per_s:
            self._rate = AsyncLimiter(1, servers / limits.rate_per_s)
        self._circuit = Circuit(limits.breaker)
        self._cache: LRUCache[bytes, ToolResult] | None = None
        if limits.cache_mb:
            self._cache = LRUCache(limits.cache_mb * 2**20, getsizeof=_size)

    async def run(
        self, arguments: Any, images: Sequence[Any], earlier: Sequence[EarlierCall]
    ) -> ToolResult:
        """Answer one call. Never raises.

        Args:
            arguments: what the policy wrote.
            images: pixels or awaitables of pixels (Ray's references).
            earlier: the rollout's earlier calls.
        """
        try:
            parsed = self.tool.parse(arguments)
        except ToolError as error:
            return self._answer(ToolResult(ToolStatus.TOOL_ERROR, self._cut(str(error))))
        except BaseException as raised:  # the check may be the user's
            return self._answer(self._failure(ordinary(raised)))
        # Asked here and again in the slot: a call must not wait in the queue for a refusal.
        if self._circuit.open_s > 0:
            return self._answer(self._refusal())
        if self._inside >= self.limits.concurrency + self.limits.queue:
            text = f"{self.tool.name}: {self.limits.queue} calls wait already"
            return self._answer(ToolResult(ToolStatus.OVERLOADED, text))
        request = _Request(arguments, parsed, images, earlier, queued=time.monotonic())
        self._inside += 1
        try:
            async with self._slots:
                return await self._in_slot(request)
        finally:
            self._inside -= 1

    def take_stats(self) -> ToolStats:
        """Return the numbers since they were last taken."""
        taken, self._stats = self._stats, ToolStats()
        return taken

    async def _in_slot(self, request: _Request) -> ToolResult:
        wait = time.monotonic() - request.queued
        key: bytes | None = None
        # Images are fetched inside the slot: calls that wait hold references, not pixels.
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                pixels = [await _pixels(image) for image in request.images]
                if self._cache is not None:
                    key = await _digest(request.arguments, pixels)
        except Exception as error:
            return self._answer(self._failure(error, "its images were lost: "))
        known = self._cached(key)
        if known is not None:
            return self._answer(known, cached=True)
        if self._rate is not None:
            await self._rate.acquire()
            wait = time.monotonic() - request.queued
        if not self._circuit.admit():  # it opened while this call waited
            return self._answer(self._refusal())
        crowded = self._crowded()
        if crowded is not None:
            return self._answer(crowded)
        deadline_s = self.limits.deadline_s
        call = ToolCall(request.parsed, pixels, request.earlier, deadline_s)
        result = await self._attempts(call)
        self._keep(key, result)
        return self._answer(result, wait)

    async def _attempts(self, call: ToolCall) -> ToolResult:
        """Run a call, and again after infrastructure failures."""
        result = await self._attempt(call)
        # A deadline is not tried again: the call would take as long as before.
        for retry in range(self.limits.retries):
            if result.status is not ToolStatus.INFRASTRUCTURE:
                break
            await asyncio.sleep(RETRY_PAUSE_S * 2**retry)
            result = await self._attempt(call)
        failed = result.status in (ToolStatus.INFRASTRUCTURE, ToolStatus.DEADLINE)
        self._circuit.record(failed=failed)
        return result

    async def _attempt(self, call: ToolCall) -> ToolResult:
        started = time.monotonic()
        images: tuple[Pixels, ...] = ()
        left_nothing = False
        try:
            async with asyncio.timeout(self.limits.deadline_s) as deadline:
                text, images = await self._capped(await self._invoke(call))
            status = ToolStatus.OK
        except ToolError as error:
            status, text = ToolStatus.TOOL_ERROR, self._cut(str(error))
            left_nothing = isinstance(error, ToolStopped)
        except Exception as error:
            if not deadline.expired():
                return self._failure(error, seconds=time.monotonic() - started)
            status = ToolStatus.DEADLINE
            text = f"{self.tool.name} ran longer than {self.limits.deadline_s:g} s"
        seconds = time.monotonic() - started
        return ToolResult(status, text, images, seconds, left_nothing=left_nothing)

    async def _invoke(self, call: ToolCall) -> Output:
        if inspect.iscoroutinefunction(self.tool.run):
            return await _outcome(self.tool.run(call))
        ended = threading.Event()

        def run() -> Output | Awaitable[Output]:
            try:
                return self.tool.run(call)
            finally:
                ended.set()

        try:
            returned = await in_thread(run, f"tool-{self.tool.name}")
        except asyncio.CancelledError:
            # Its deadline has passed or its caller gave up, and the thread cannot be stopped.
            self._left_behind.append(ended)
            raise
        # A plain function may return a coroutine: that of a function it wraps.
        return await _outcome(returned) if inspect.isawaitable(returned) else returned

    def _cached(self, key: bytes | None) -> ToolResult | None:
        return None if self._cache is None or key is None else self._cache.get(key)

    def _keep(self, key: bytes | None, result: ToolResult) -> None:
        if self._cache is None or key is None or result.status is not ToolStatus.OK:
            return
        if _size(result) <= self._cache.maxsize:
            self._cache[key] = result

    def _crowded(self) -> ToolResult | None:
        """Return a refusal if too many threads have outlived their deadlines and not ended."""
        self._left_behind = [ended for ended in self._left_behind if not ended.is_set()]
        count = len(self._left_behind)
        if count < LEFT_BEHIND * self.limits.concurrency:
            return None
        text = f"{self.tool.name}: {count} calls ran over and have not ended"
        return ToolResult(ToolStatus.INFRASTRUCTURE, text)

    async def _capped(self, output: Output) -> Output:
        text, images = checked(output)
        over = len(images) - self.limits.max_images
        if over > 0:
            text += f"\n[{over} more images left out]"
            images = images[: self.limits.max_images]
        return self._cut(text), tuple([await self._scaled(image) for image in images])

    async def _scaled(self, image: Pixels) -> Pixels:
        """Return an image that is within `max_image_pixels`; only a larger one takes a thread.

        Raises:
            ToolError: the model's image processor would refuse the image, and end the request.
        """
        height, width = image.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ToolError(
                f"the result is an image of {width}x{height} pixels, "
                f"more than {MAX_ASPECT} times as long as wide"
            )
        most = self.limits.max_image_pixels
        if most is None or height * width <= most:
            return image
        return await in_thread(lambda: fit(image, None, most), f"scale-{self.tool.name}")

    def _cut(self, text: str) -> str:
        """Return a text that any tokenizer takes, cut to the tool's limit.

        A web page or a user's function may hold half a surrogate pair: that is no failure.
        """
        text = clean(text)
        over = len(text) - self.limits.max_characters
        if over <= 0:
            return text
        return f"{text[: self.limits.max_characters]}\n[{over} more characters cut]"

    def _answer(
        self, result: ToolResult, wait: float | None = None, *, cached: bool = False
    ) -> ToolResult:
        self._stats.record(result, wait, cached=cached)
        return result

    def _failure(self, error: Exception, what: str = "", seconds: float = 0.0) -> ToolResult:
        # The error may repeat what a server or a page says, and logs are read on terminals.
        trace = "".join(traceback.format_exception(error)).rstrip()
        log.warning("tool %s failed\n%s", self.tool.name, printable(trace[-MAX_TRACE:]))
        text = self._cut(f"{self.tool.name} failed: {what}{type(error).__name__}: {error}")
        return ToolResult(ToolStatus.INFRASTRUCTURE, text, seconds=seconds)

    def _refusal(self) -> ToolResult:
        failures, seconds = self.limits.breaker.failures, self._circuit.open_s
        text = (
            f"{self.tool.name}: circuit open for {seconds:.1f} s more, "
            f"{failures} calls failed in a row"
        )
        return ToolResult(ToolStatus.INFRASTRUCTURE, text)


async def _outcome(running: Awaitable[Output]) -> Output:
    """Return what a coroutine returns; it may be the user's, and raise anything."""
    try:
        return await running
    except asyncio.CancelledError as raised:
        task = asyncio.current_task()
        if task is None or task.cancelling():  # the deadline, or nobody waits any more
            raise
        raise ordinary(raised) from raised
    except (Exception, GeneratorExit):  # GeneratorExit: the event loop ends
        raise
    except BaseException as raised:
        raise ordinary(raised) from raised


async def _pixels(image: Pixels | Awaitable[Pixels]) -> Pixels:
    return image if isinstance(image, np.ndarray) else await image


def _size(result: ToolResult) -> int:
    """Return about how many bytes a cached result takes."""
    return 256 + 4 * len(result.text) + sum(image.nbytes for image in result.images)


async def _digest(arguments: Any, images: Sequence[Pixels]) -> bytes:
    """Return the key of a call in the cache."""

    def digest() -> bytes:
        total = hashlib.blake2b(json.dumps(arguments, sort_keys=True).encode(), digest_size=16)
        for image in images:
            total.update(repr(image.shape).encode())
            total.update(np.ascontiguousarray(image).data)
        return total.digest()

    # A photo of 3.6 MB takes 5 ms: not on the loop that serves everyone.
    return await in_thread(digest, "tool-digest") if images else digest()
