"""The memory of a rank, lent to the engines while they run (`rollout.colocated`).

What a rank keeps between two updates is parked elsewhere: a GPU's in host memory, a CPU's in a
file. Each storage is copied and then emptied, but stays the same storage: views of it need not be
found and changed (DeepSpeed's flat buffers, partitions of parameters inside them, the optimizer's
moments). Sums of gradients and buffers of communication hold nothing between updates; they come
back as zeros.

DeepSpeed's own `offload_states` does this for its FusedAdam only, which needs nvcc, and not for a
model without an optimizer, such as the reference.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

SMALLEST = 1 << 16
"""Bytes of a storage below which it stays where it is, such as AdamW's count of steps."""

_DONTNEED = 4
"""Linux's MADV_DONTNEED: the pages hold zeros from now on, and take no memory until written."""

F = TypeVar("F", bound=Callable[..., Any])


class Memory:
    """Park what the DeepSpeed engines of one rank keep, and bring it back."""

    def __init__(self, engines: Sequence[Any], device: torch.device) -> None:
        """Look after the states of `engines` that lie on `device`."""
        self._engines = engines
        self._device = device
        self._parked: list[_Parked] = []
        # Pinned host memory is slow to get, so it is kept for the next time.
        self._places: dict[int, _Place] = {}

    @property
    def released(self) -> bool:
        """Tell whether the states are parked."""
        return bool(self._parked)

    def release(self) -> None:
        """Park the states and give all free memory back; nothing happens if they are parked."""
        if self.released:
            return
        # Parameters that are still whole, small ones among them, go back to their partitions.
        for engine in self._engines:
            engine.empty_partition_cache()
        self._synchronize()
        kept = _storages(self._on_device(_kept(self._engines)))
        empty = _storages(self._on_device(_scratch(self._engines)))
        try:
            for storage in kept:
                self._parked.append(_Parked(storage, self._place(len(self._parked))))
        except BaseException:
            # No room for all of it.
            self.reclaim()
            raise
        for storage in empty:
            self._parked.append(_Parked(storage, None))
        give_back(self._device)

    def reclaim(self) -> None:
        """Bring the states back; nothing happens if they are there."""
        for parked in self._parked:
            parked.bring_back()
        self._synchronize()
        self._parked = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the states there inside the block, and afterwards as before."""
        released = self.released
        self.reclaim()
        try:
            yield
        finally:
            if released:
                self.release()

    def _on_device(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        for tensor in tensors:
            if tensor.device == self._device:
                yield tensor

    def _place(self, number: int) -> _Place:
        if number not in self._places:
            self._places[number] = _Host() if self._device.type == "cuda" else _File()
        return self._places[number]

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def needs_memory(method: F) -> F:
    """Make a method of an object with a `memory` hold the states while it runs."""

    @functools.wraps(method)
    def holding(self: Any, *arguments: Any, **named: Any) -> Any:
        with self.memory.held():
            return method(self, *arguments, **named)

    return holding  # type: ignore[return-value]


def give_back(device: torch.device) -> None:
    """Give free memory back to the GPU, or to the operating system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    # glibc keeps freed memory that lies between blocks in use; another C library has no such call.
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Place(Protocol):
    """Where the bytes of one storage are kept."""

    def write(self, data: Tensor) -> None: ...

    def read(self, data: Tensor) -> None: ...


class _Host:
    """Pinned host memory."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def write(self, data: Tensor) -> None:
        if self._buffer.shape != data.shape:
            self._buffer = torch.empty(data.shape, dtype=torch.uint8, pin_memory=True)
        self._buffer.copy_(data)

    def read(self, data: Tensor) -> None:
        data.copy_(self._buffer, non_blocking=True)


class _File:
    """A file without a name, which ends with the process."""

    def __init__(self) -> None:
        # Open as long as the rank lives.
        self._file = tempfile.TemporaryFile(buffering=0, prefix="axpo-learner-")  # noqa: SIM115

    def write(self, data: Tensor) -> None:
        self._file.seek(0)
        view = _view(data)
        # One call writes at most 2 GiB.
        while view:
            view = view[self._file.write(view) :]

    def read(self, data: Tensor) -> None:
        self._file.seek(0)
        view = _view(data)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise OSError("the file with the learner's parked memory is too short")
            view = view[count:]


class _Parked:
    """A storage that holds nothing until it is brought back."""

    def __init__(self, storage: torch.UntypedStorage, place: _Place | None) -> None:
        """Empty a storage; its bytes go to `place`, or nowhere if that is None."""
        self._storage = storage
        self._size = storage.nbytes()
        self._place = place
        if place is not None:
            place.write(_bytes_of(storage))
        _empty(storage)

    def bring_back(self) -> None:
        """Fill the storage again: with its bytes, or with zeros."""
        if self._storage.nbytes() != self._size:
            self._storage.resize_(self._size)
        data = _bytes_of(self._storage)
        if self._place is None:
            data.zero_()
        else:
            self._place.read(data)


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _view(data: Tensor) -> memoryview:
    """Return bytes on the CPU as Python's files take them."""
    # numpy() would do, but torch resizes no storage that numpy has ever seen.
    array = (ctypes.c_ubyte * data.numel()).from_address(data.data_ptr())
    return memoryview(array).cast("B")


def _empty(storage: torch.UntypedStorage) -> None:
    """Make a storage take no memory."""
    if storage.device.type == "cuda":
        storage.resize_(0)
        return
    # With one rank a whole parameter is its partition, and it may have been sent as a numpy array.
    # So the address stays, and only its pages are given back.
    page = mmap.PAGESIZE
    first = -(-storage.data_ptr() // page) * page
    last = (storage.data_ptr() + storage.nbytes()) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


def _kept(engines: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the partitions of parameters, their float32 twins, and the optimizer's moments."""
    for engine in engines:
        for parameter in engine.module.parameters():
            yield parameter.ds_tensor
        optimizer = engine.optimizer
        yield from getattr(optimizer, "fp32_partitioned_groups_flat", [])
        for state in getattr(optimizer, "state", {}).values():
            for value in state.values():
                if isinstance(value, Tensor):
                    yield value


def _scratch(engines: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the sums of gradients, and the buffers of their communication."""
    for engine in engines:
        optimizer = engine.optimizer
        sums = getattr(optimizer, "grad_partitions_flat_buffer", None)
        if sums is not None:
            yield sums
        for bucket in getattr(optimizer, "ipg_buckets", {}).values():
            if bucket.buffer is not None:
                yield bucket.buffer


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Return the storages of tensors, each once, without the small ones."""
    distinct: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() >= SMALLEST:
            distinct[storage.data_ptr()] = storage
    return list(distinct.values())
