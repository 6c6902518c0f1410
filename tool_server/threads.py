"""Plain functions off the event loop, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(
    function: Callable[[], T], name: str, late: Callable[[T], None] | None = None
) -> T:
    """What `function()` returns or raises. `late` gets its result where nobody waits for it any more.

    A thread of its own: in a pool, a function that hangs would hold a place that later calls wait for inside their deadline.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)
        elif error is None and late is not None:
            threading.Thread(target=late, args=(result,), name=f"{name}-late", daemon=True).start()

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            # A StopIteration cannot be set on a future: the waiter would wait for ever.
            error = (
                RuntimeError(f"StopIteration: {raised}")
                if isinstance(raised, StopIteration)
                else raised
            )
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop was closed meanwhile
            if error is None and late is not None:
                late(result)  # type: ignore[arg-type]

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future
