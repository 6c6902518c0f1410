"""Settings of the sandbox, and which of its layers are in force."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1 << 20

MAX_FILES = 4096
MAX_CODE = 64 * 1024
MAX_OUTPUT = MIB
"""Bytes of output after which a call is killed: draining a flood costs a core."""

MAX_THREADS = 128
"""Of one call, its first included."""

MAX_TIMERS = 128
"""POSIX timers and queued signals of one call."""

MAX_HEADER = 64 * 1024
"""Bytes of the JSON in a result."""


class Layer(StrEnum):
    """The layers that a recipe may name as allowed to be missing.

    Seccomp is not one of them: without it the limits of a process are not those of the call.
    """

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"


class PythonOptions(BaseModel):
    """The settings of the sandbox. Bytes and pixels are per call.

    With the defaults, every attack of `attacks.py` was held.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: Literal["call", "rollout"] = Field(
        default="call",
        description="call: every call starts afresh; rollout: it starts from the variables that "
        "the earlier calls of its rollout left",
    )
    toolbox: Path | None = Field(
        default=None,
        description="virtual environment of the policy's code; default: the one that `axpo setup` "
        "made",
    )
    allow_missing: frozenset[Layer] = Field(
        default=frozenset(), description="layers without which the tool may start all the same"
    )
    zygotes: int = Field(
        default=0, ge=0, description="warm interpreters, one spare not counted; 0: one per 4 cores"
    )
    slots: int = Field(
        default=0, ge=0, description="calls that run at once, the others wait; 0: two per core"
    )
    cpu_s: int = Field(
        default=10, ge=1, description="CPU seconds of one call, the limit that the policy sees"
    )
    wall_s: float = Field(
        default=20.0,
        gt=0,
        description="seconds of one call from its start: with two calls per core it has time for "
        "its CPU seconds, and a call that sleeps does not keep its slot for long",
    )
    memory_mib: int = Field(
        default=2048,
        ge=1024,
        description="address space of one call, of which the imported packages take 0.6 GiB; and "
        "where control groups can be had, its memory of every kind",
    )
    disk_mib: int = Field(
        default=64,
        ge=1,
        description="files of one call, which are kept in memory; the given images come on top",
    )
    max_text: int = Field(
        default=16384,
        ge=256,
        description="bytes of output that the policy reads: three quarters head, a quarter tail",
    )
    max_figures: int = Field(default=4, ge=0)
    max_figure_pixels: int = Field(default=4 * MIB, ge=1)
    jail_uid: int = Field(
        default=60_917,
        ge=1,
        lt=65_534,
        description="user id of the jail if the server runs as root: one that owns no file",
    )

    @property
    def memory_bytes(self) -> int:
        """Return `memory_mib` in bytes."""
        return self.memory_mib * MIB

    def zygote_count(self) -> int:
        """Return the number of warm interpreters, the spare not counted."""
        return self.zygotes or max(1, (os.cpu_count() or 1) // 4)

    def slot_count(self) -> int:
        """Return how many calls run at once."""
        return self.slots or 2 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class Isolation:
    """The layers that the jails of a pool use.

    `bare` means none at all, not even dropped capabilities. It is for benchmarks to compare with.
    """

    namespaces: bool = True
    landlock: int = 0  # ABI; 0: off
    seccomp: bool = True
    bare: bool = False


def limits(options: PythonOptions, codes: int, given: int = 0) -> dict[str, int]:
    """Return the RLIMITs of a call.

    Args:
        options: the sandbox's.
        codes: how many codes it runs: each adds its share of CPU time.
        given: bytes of the images that it is given, on top of its own memory.
    """
    return {
        "CPU": options.cpu_s * codes,
        "AS": options.memory_bytes + given,
        "FSIZE": options.disk_mib * MIB // 2,
        "NOFILE": 64,
        # Both are counted per user and user namespace, of which each call has its own.
        "NPROC": _share(resource.RLIMIT_NPROC, MAX_THREADS, options),
        "SIGPENDING": _share(resource.RLIMIT_SIGPENDING, MAX_TIMERS, options),
        "STACK": 16 * MIB,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }


def _share(limit: int, most: int, options: PythonOptions) -> int:
    """Return `most`, or less if all calls together could take half of what the server itself has.

    What a call has counts for its server's user, too, without whose threads no call can be forked.
    """
    own, _ = resource.getrlimit(limit)
    if own == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, own // (2 * options.slot_count())))
