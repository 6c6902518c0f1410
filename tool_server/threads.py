"""Run plain functions off the event loop, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from axpo.errors import ordinary

T = TypeVar("T")


async def in_thread(
    function: Callable[[], T], name: str, late: Callable[[T], None] | None = None
) -> T:
    """Return what `function()` returns, or raise what it raises (see `ordinary`).

    It runs in a thread of its own. In a pool, a function that hangs would hold a place, and later
    calls would wait for that place inside their deadlines.

    Args:
        function: takes nothing; it may hang for ever without harm to other calls.
        name: of the thread.
        late: gets the result if nobody waits for it any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        elif error is None and late is not None:
            # Freeing what came too late may take long: not on the event loop.
            threading.Thread(target=late, args=(result,), name=f"{name}-late", daemon=True).start()

    def work() -> None:
        result: Any = None
        error: Exception | None = None
        try:
            result = function()
        except BaseException as raised:
            error = ordinary(raised)
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop was closed meanwhile
            if error is None and late is not None:
                late(result)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future
