"""Count the bytes between this process and Ray.

A byte counts when the process serializes an object for Ray or gets one from it: arguments of calls,
what it puts into the object store, what comes back, what it passes on of its own memory. So an
object of the store that it only refers to does not count, and one that it maps into its memory
counts whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray
from ray._private.serialization import SerializationContext
from ray.experimental import get_local_object_locations

from resampler.client import ResamplerClient

_SERIALIZE = SerializationContext.serialize
_DESERIALIZE = SerializationContext.deserialize_objects
_OFFER = ResamplerClient.offer


class Traffic:
    """Bytes received and sent. Any thread may add some."""

    def __init__(self) -> None:
        self.received = self.sent = 0
        self._lock = threading.Lock()

    @property
    def megabytes(self) -> float:
        """Return both together."""
        return (self.received + self.sent) / 1e6

    def receive(self, count: int) -> None:
        """Add bytes that were received."""
        with self._lock:
            self.received += count

    def send(self, count: int) -> None:
        """Add bytes that were sent."""
        with self._lock:
            self.sent += count


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what this process serializes for Ray, and what it gets from it."""
    traffic = Traffic()

    def serialize(context: Any, value: Any) -> Any:
        made = _SERIALIZE(context, value)
        traffic.send(made.total_bytes)
        return made

    def deserialize(context: Any, objects: Any, *arguments: Any) -> Any:
        traffic.receive(sum(len(data) for data, *_ in objects if data is not None))
        return _DESERIALIZE(context, objects, *arguments)

    async def offer(client: ResamplerClient, group: Any, *arguments: Any) -> Any:
        # An object of less than 100 kB goes out of this process's memory as it came.
        if isinstance(group, ray.ObjectRef):
            place = get_local_object_locations([group])[group]
            traffic.send(0 if place["node_ids"] else place["object_size"])
        return await _OFFER(client, group, *arguments)

    with (
        mock.patch.object(SerializationContext, "serialize", serialize),
        mock.patch.object(SerializationContext, "deserialize_objects", deserialize),
        mock.patch.object(ResamplerClient, "offer", offer),
    ):
        yield traffic
