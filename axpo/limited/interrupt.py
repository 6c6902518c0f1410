"""End Python code of somebody else that does not come to an end, in this thread."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TooSlow(Exception):
    """What ran did not end in time."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block if it takes longer.

    It reaches loops of Python, such as a template's. A single long call into C is not cut short.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    is_over = False

    def interrupt() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooSlow))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            is_over = True
        timer.cancel()
