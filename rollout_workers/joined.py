"""Send a value with thousands of small arrays between processes as one with a single array.

Ray copies every array of a value by itself, and wraps each in objects of its own where it is read.
For arrays of a few hundred numbers, as trajectories have them, that costs more than their bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import Field
from itertools import accumulate
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
ALIGNMENT = 64
"""Bytes at whose multiples an array begins, as those that numpy allocates."""
_PADDING = memoryview(bytes(ALIGNMENT))


class Joined:
    """Carry a value through Ray. Who receives it has the value itself, with read-only arrays."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Ray's own pickler, because it knows object references. It is Ray that asks for this, and
        # it notes the references that the value holds.
        from ray import cloudpickle

        found: list[pickle.PickleBuffer] = []
        rest = cloudpickle.dumps(self._value, protocol=5, buffer_callback=found.append)
        parts: list[memoryview] = []
        for buffer in found:
            array = buffer.raw()
            parts += [array, _PADDING[: -array.nbytes % ALIGNMENT]]
        joined = np.frombuffer(b"".join(parts), np.uint8)
        return _apart, (rest, joined, [buffer.raw().nbytes for buffer in found])


class TravelsJoined:
    """A dataclass whose arrays travel as one, wherever it is pickled."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        values = tuple(getattr(self, name) for name in self.__dataclass_fields__)
        return _made, (type(self), Joined(values))


def _made(kind: type[T], values: Sequence[Any]) -> T:
    return kind(*values)


def _apart(rest: bytes, joined: NDArray[np.uint8], sizes: Sequence[int]) -> Any:
    """Return the value."""
    whole = joined.data.toreadonly()
    padded = [size + -size % ALIGNMENT for size in sizes]
    starts = [0, *accumulate(padded)]
    parts = [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return pickle.loads(rest, buffers=parts)
