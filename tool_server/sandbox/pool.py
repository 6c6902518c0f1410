"""The jails of one server.

Calls are spread over warm zygotes. A spare zygote takes over from one that died. Calls beyond the
slots wait in a queue, and the wait is not part of their time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tool_server.sandbox.channels import Work
from tool_server.sandbox.jail import Toolbox
from tool_server.sandbox.options import Isolation, PythonOptions
from tool_server.sandbox.places import Places
from tool_server.sandbox.process import GRACE_S, START_S, Finished, Jail
from tool_server.sandbox.self_test import self_test
from tool_server.tool import Pixels, ToolUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0


class JailPool:
    """Keep the jails of one server alive and spread calls over them.

    It runs in a thread with an event loop of its own, so that it serves callers of any loop and
    opens without one.
    """

    def __init__(self, options: PythonOptions, isolation: Isolation, toolbox: Toolbox) -> None:
        """Start and test all jails, side by side.

        Raises:
            ToolUnavailable: one of them does not start, or does not hold an escape.
        """
        self._options, self._isolation, self._toolbox = options, isolation, toolbox
        self._active: list[Jail] = []
        self._spare: Jail | None = None
        self._closing = False
        self._changed = asyncio.Event()
        self._refilling: asyncio.Task[None] | None = None
        self._places = Places(options, isolation)
        self._slots = asyncio.Semaphore(options.slot_count())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="python-tool", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._fill())
        except BaseException:
            self.close()
            raise

    async def call(
        self,
        codes: Sequence[str],
        images: Sequence[Pixels] = (),
        seen: Sequence[int] | None = None,
        wall_s: float | None = None,
    ) -> Finished:
        """Run the last of `codes` after the others, in a process of its own.

        Cancelling kills the process.

        Args:
            codes: the codes, in order.
            images: all images that they see.
            seen: the i-th code sees the first `seen[i]` images; None: every code sees all.
            wall_s: seconds that all codes may take together, once they run; None: what the
                options say.

        Raises:
            ToolUnavailable: the sandbox cannot run the call.
        """
        seen_by_each = [len(images)] * len(codes) if seen is None else seen
        call = self._call(Work(codes, images, seen_by_each), wall_s)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    def pids(self) -> list[int]:
        """Return the pids of the zygotes that are alive, the spare last."""
        return [jail.pid for jail in self._jails() if jail.alive]

    def close(self) -> None:
        """Kill every jail, and every call with it."""
        if self._loop.is_closed():
            return
        self._closing = True
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._places.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _jails(self) -> list[Jail]:
        """Return the active jails, then the spare. A copy: other threads ask, and jails die."""
        return [jail for jail in (*self._active, self._spare) if jail is not None]

    async def _call(self, work: Work, wall_s: float | None) -> Finished:
        # The slot first: a jail that is chosen before the wait may have died after it.
        async with self._slots:
            jail = await self._least_busy()
            return await jail.call(work, wall_s)

    async def _least_busy(self) -> Jail:
        """Return the active jail with the fewest calls; wait for one if there is none."""
        try:
            async with asyncio.timeout(START_S):
                while not self._active and not self._closing:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ToolUnavailable("no sandbox could be started") from None
        if self._closing:
            raise ToolUnavailable("the sandbox is closing")
        return min(self._active, key=lambda jail: jail.in_flight)

    async def _fill(self) -> None:
        """Start the jails that are missing; the first ones to be ready become active.

        Raises:
            ToolUnavailable: one of them does not start.
        """
        missing = self._options.zygote_count() + 1 - len(self._jails())
        starts = [self._start() for _ in range(missing)]
        # All of them have ended before the first error is raised: none goes on unseen.
        for error in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def _start(self) -> None:
        jail = Jail(self._options, self._isolation, self._toolbox, self._places, self._died)
        await jail.start()
        try:
            if not self._isolation.bare:
                await self_test(jail, self._options, self._isolation)
        except BaseException:
            jail.kill()
            await jail.gone()
            raise
        # The jail may have died since, or the pool been closed, before it was on the list.
        if not jail.alive or self._closing:
            return jail.kill()
        if len(self._active) < self._options.zygote_count():
            self._active.append(jail)
        else:
            self._spare = jail
        self._changed.set()

    def _died(self, jail: Jail) -> None:
        if self._closing or jail not in self._jails():
            return
        log.warning("a sandbox of the python tool died, pid %d; the spare takes over", jail.pid)
        if jail is self._spare:
            self._spare = None
        else:
            self._active.remove(jail)
            if self._spare is not None:
                self._active.append(self._spare)
                self._spare = None
        # A refill that runs sees what is missing by itself.
        if self._refilling is None or self._refilling.done():
            self._refilling = self._loop.create_task(self._refill())

    async def _refill(self) -> None:
        """Start what is missing until all jails are there again, the spare included."""
        backoff_s = FIRST_BACKOFF_S
        while len(self._jails()) <= self._options.zygote_count():
            try:
                await self._fill()
            except Exception:
                # Whatever it was may pass: calls wait for START_S, then they are answered.
                log.exception(
                    "a sandbox of the python tool does not start; trying again in %g s", backoff_s
                )
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _close(self) -> None:
        self._changed.set()  # calls that wait for a jail see that there will be none
        if self._refilling is not None:
            self._refilling.cancel()
        jails = self._jails()
        for jail in jails:
            jail.kill()
        # A jail that is starting is not on the list: its task kills it.
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=GRACE_S)
        await asyncio.gather(*[jail.gone() for jail in jails])
