"""Make things ahead of their use, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def made_ahead(make: Callable[[int], T], count: int) -> Iterator[T]:
    """Yield make(0) to make(count - 1); a thread makes the next one while the last is in use."""
    if count == 0:
        return
    with ThreadPoolExecutor(1, "made-ahead") as thread:
        following = thread.submit(make, 0)
        for number in range(1, count):
            made = following.result()
            following = thread.submit(make, number)
            yield made
        yield following.result()
