"""What the server shares with the child of one call: a memfd with its inputs, and two pipes.

`inside/protocol.py` has the formats. All that comes out of a pipe was written by the policy's
process: it is checked before it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tool_server.images import MAX_ASPECT
from tool_server.sandbox.inside import protocol
from tool_server.sandbox.options import MAX_HEADER, MAX_OUTPUT, PythonOptions
from tool_server.tool import Pixels

READ_BYTES = 1 << 16
EVERY_SEAL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class Work:
    """What a call is to run."""

    codes: Sequence[str]
    images: Sequence[Pixels]
    seen: Sequence[int]  # the i-th code sees the first `seen[i]` images


def open_inputs(work: Work) -> int:
    """Return a sealed memfd: the child reads it, and nobody can change or grow it."""
    inputs: protocol.Inputs = {
        "codes": list(zip(work.codes, work.seen, strict=True)),
        "shapes": [(image.shape[0], image.shape[1]) for image in work.images],
    }
    header = json.dumps(inputs).encode()
    # Unlike a pipe, a memfd needs nobody to feed it while the child reads.
    fd = os.memfd_create("axpo-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(protocol.LENGTH.pack(len(header)) + header)
            for image in work.images:
                file.write(np.ascontiguousarray(image).data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, EVERY_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_pipe(given: contextlib.ExitStack) -> tuple[int, int]:
    """Return a pipe: the end that is read here without waiting, and the child's end.

    `given` closes the child's end.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    given.callback(os.close, write)
    return read, write


class Pipe:
    """Read a pipe to its end, or until `fault` says that the call must be killed for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, stop: Callable[[str], None]
    ) -> None:
        self._loop, self._fd, self._stop = loop, fd, stop
        self.data = bytearray()
        self.closed: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fault(self) -> str:
        """Return why the call must be killed for what it has written so far; else ""."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self.closed.done():
            self.closed.set_result(None)

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        self.data += chunk
        # Every process that could write has ended, or closed its end.
        if not chunk:
            self.close()
            return
        why = self.fault()
        if why:
            self._stop(why)
            self.close()


class OutputPipe(Pipe):
    """Read stdout and stderr of a call."""

    def fault(self) -> str:
        """Return "output" if there is too much of it."""
        return "output" if len(self.data) > MAX_OUTPUT else ""


class ResultPipe(Pipe):
    """Read the result of a call: what the sandbox's own code in the child has to say."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        stop: Callable[[str], None],
        *,
        codes: int,
        options: PythonOptions,
    ) -> None:
        super().__init__(loop, fd, stop)
        self._codes, self._options = codes, options
        # What the header says, once it is there.
        self._shapes: list[tuple[int, int]] = []
        # Both are negative until the header is there.
        self._body = -1  # where the pixels start
        self._expected = -1  # bytes of the whole result
        self.error = False

    @property
    def begun(self) -> int:
        """Return how many codes were started."""
        return min(self._codes, len(self.data))

    @property
    def complete(self) -> bool:
        """Return whether the result came, and nothing else."""
        return self._body >= 0 and len(self.data) == self._expected

    def images(self) -> list[Pixels]:
        """Return the images of a complete result."""
        if not self.complete:
            return []
        images = []
        at = self._body
        for height, width in self._shapes:
            size = height * width * protocol.RGB
            pixels = np.frombuffer(self.data, np.uint8, size, at)
            images.append(pixels.reshape(height, width, protocol.RGB))
            at += size
        return images

    def fault(self) -> str:
        """Return "result" if this is no result, or more than one."""
        if self._body < 0 and not self._accepts_header():
            return "result"
        too_long = 0 <= self._expected < len(self.data)
        return "result" if too_long else ""

    def _accepts_header(self) -> bool:
        """Read the header if all of it is there; return whether it is acceptable so far."""
        start = self._codes + protocol.LENGTH.size
        if len(self.data) < start:
            return True
        # Refused before any of it is kept: the length is the child's word.
        (length,) = protocol.LENGTH.unpack_from(self.data, self._codes)
        if length > MAX_HEADER:
            return False
        body = start + length
        if len(self.data) < body:
            return True
        if not self._parse_header(bytes(self.data[start:body])):
            return False
        pixels = sum(height * width for height, width in self._shapes)
        self._body = body
        self._expected = body + pixels * protocol.RGB
        return True

    def _parse_header(self, text: bytes) -> bool:
        try:
            header = json.loads(text)
            self.error = bool(header["error"])
            self._shapes = [(height, width) for height, width in header["images"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        if len(self._shapes) > self._options.max_figures:
            return False
        return all(self._is_size(height, width) for height, width in self._shapes)

    def _is_size(self, height: Any, width: Any) -> bool:
        # The two are whatever JSON can say; True is an int, too, so `isinstance` will not do.
        if type(height) is not int or type(width) is not int:
            return False
        short, long = min(height, width), max(height, width)
        if short < 1 or height * width > self._options.max_figure_pixels:
            return False
        return long <= MAX_ASPECT * short
