"""What the server and a jail send to each other.

The control socket (SOCK_SEQPACKET) carries JSON:

    jail    {"hello": true}
    server  Config, once
    jail    {"ready": seconds that the imports took}
    server  Call, with file descriptors: inputs, output, result, then one for each control group
    server  {"kill": number of a call}
    jail    Ended, for every call

`inputs` is a sealed memfd: <length><JSON Inputs><raw RGB of each image>.
`output` is the pipe that the child has as stdout and stderr.
`result` is a pipe: `BEGIN` for each code that was started, then
<length><JSON Result><raw RGB of each image>. A length is `LENGTH`.

This module is imported on both sides, so it needs the standard library only.
"""

from __future__ import annotations

import struct
from typing import TypedDict

MESSAGE_BYTES = 1 << 16
"""No message on the control socket is longer."""

LENGTH = struct.Struct("<I")
"""Bytes of the JSON that follows."""

BEGIN = b"\0"
"""Written to the result pipe before each code runs.

A child that ends before its first one failed in the isolation, not in the code.
"""

RGB = 3
"""Bytes of a pixel."""


class Caps(TypedDict):
    """Limits of the images that one code shows."""

    figures: int  # how many
    pixels: int  # of each
    aspect: int  # long side to short side


class Config(TypedDict):
    """The settings of a jail, for all of its calls."""

    namespaces: bool
    landlock: int  # ABI; 0: off
    seccomp: str  # BPF in base64; empty: off
    bare: bool  # keep the capabilities, for benchmarks only
    readable: list[str]  # paths for Landlock
    work: str  # working directory of the calls, or the folder of those
    limits: list[str]  # names of the RLIMITs that calls will have
    caps: Caps


class Call(TypedDict):
    """One call. Its codes and images come in the `inputs` descriptor."""

    call: int  # its number
    user: int  # user id that it changes to; 0: none
    limits: dict[str, int]  # name of the RLIMIT -> value
    disk: int  # bytes
    files: int


class Ended(TypedDict, total=False):
    """How a call ended."""

    ended: int  # number of the call
    status: int  # as of wait(2)
    cpu_s: float
    error: str  # in place of status and cpu_s: the zygote could not fork


class Inputs(TypedDict):
    """The header of `inputs`."""

    codes: list[tuple[str, int]]  # each with the number of images that it sees
    shapes: list[tuple[int, int]]  # height and width of each image


class Result(TypedDict):
    """The header of `result`."""

    error: bool  # the last code raised
    images: list[tuple[int, int]]  # height and width of each image
