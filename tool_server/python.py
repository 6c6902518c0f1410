"""`python`: run the policy's code in the sandbox, and answer as a notebook would.

The answer is text and figures.
"""

from __future__ import annotations

import hashlib
import signal
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tool_server.arguments import define, parse
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import MAX_CODE, MAX_OUTPUT, MIB, PythonOptions
from tool_server.sandbox.pool import JailPool
from tool_server.sandbox.process import Finished
from tool_server.tool import (
    Output,
    Pixels,
    Shown,
    Tool,
    ToolCall,
    ToolError,
    ToolKind,
    ToolUnavailable,
    tool_kinds,
)

REMEMBERED = 10_000
"""Histories known to end their process: 64 bytes each."""

# The descriptions are part of the prompt.
DESCRIPTION = (
    "Run Python code and see what it prints, the value of its last expression, and the figures it "
    "shows. numpy, scipy, sympy, pandas, matplotlib and PIL can be imported. The images are the "
    "files image_0.png, image_1.png, ... and the PIL images in the list `images`. "
)
SESSIONS = {
    "call": "Every call starts afresh.",
    "rollout": "Variables and files of earlier calls are still there.",
}


def _code(code: str) -> str:
    """Refuse what need not start a process."""
    if len(code) > MAX_CODE:
        raise _too_long()
    if "\0" in code:
        raise PydanticCustomError("code", "contains a NUL character")
    try:
        size = len(code.encode())
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "code", "is not valid Unicode text: it contains half of a surrogate pair"
        ) from None
    if size > MAX_CODE:
        raise _too_long()
    return code


def _too_long() -> PydanticCustomError:
    return PydanticCustomError("code", f"longer than {MAX_CODE // 1024} KiB")


class PythonArguments(BaseModel):
    """What the policy writes. The description is part of the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    code: Annotated[str, AfterValidator(_code)] = Field(description="Python code to run")


@tool_kinds.register("python")
class Python(ToolKind, PythonOptions):
    """Run the policy's Python code in a sandbox."""

    def open(self, name: str) -> Tool:
        """Return the tool, with warm interpreters of its own."""
        tool, _ = build(name, self)
        return tool

    def shown(self) -> Shown:
        """Return what the policy reads."""
        return _shown(self)

    def default_limits(self) -> dict[str, Any]:
        """Return limits behind those of the pool, which has a queue and deadlines of its own."""
        return {"concurrency": self.slot_count(), "deadline_s": 60 + 4 * self.wall_s}


def build(name: str, options: PythonOptions) -> tuple[Tool, JailPool]:
    """Return the tool and its pool.

    Raises:
        ToolUnavailable: the machine lacks a layer that the options do not excuse.
    """
    pool = JailPool(options, *isolation(options))
    tool = PythonTool(name, options, pool)
    defined = define(name, *_shown(options), tool.run)
    return replace(defined, close=pool.close), pool


def _shown(options: PythonOptions) -> Shown:
    return Shown(DESCRIPTION + SESSIONS[options.session], PythonArguments)


@dataclass(frozen=True)
class Code:
    """What to run.

    Attributes:
        text: the code.
        seen: how many of the rollout's images it sees: an observation's images are not there
            before the observation.
    """

    text: str
    seen: int


class PythonTool:
    """One tool over one pool.

    It keeps nothing of any rollout: a session is replayed from the rollout's own calls.
    """

    def __init__(self, name: str, options: PythonOptions, pool: JailPool) -> None:
        self._name = name
        self._options = options
        self._pool = pool
        # Histories whose last code ended its process -> the images on which it did.
        self._fatal: OrderedDict[bytes, bytes] = OrderedDict()

    async def run(self, call: ToolCall) -> Output:
        """Run the code of a call, after the codes of its session."""
        history = self._history(call) if self._options.session == "rollout" else []
        while True:
            codes = [*history, Code(call.arguments.code, len(call.images))]
            texts = [code.text for code in codes]
            seen = [code.seen for code in codes]
            finished = await self._pool.call(texts, call.images, seen)
            if finished.complete and not finished.killed:
                return observation(finished, self._options, len(codes))
            if 0 < finished.begun < len(codes):
                # An earlier code ended its process. Its call was answered so, and it left nothing
                # behind: run the others without it.
                self._remember(history[: finished.begun], call.images)
                del history[finished.begun - 1]
                continue
            if finished.begun == len(codes):
                self._remember(codes, call.images)
            return observation(finished, self._options, len(codes))

    def _history(self, call: ToolCall) -> list[Code]:
        """Return the rollout's earlier codes that left something behind.

        Left out are those that could not be parsed and those that ended their process.
        """
        codes: list[Code] = []
        for earlier in call.earlier:
            if earlier.name != self._name:
                continue
            try:
                arguments = parse(PythonArguments, earlier.arguments)
            except ToolError:
                continue
            codes.append(Code(arguments.code, earlier.images))
            known = self._fatal.get(_digest(codes))
            if known is not None and known == _pixels_digest(codes, call.images):
                codes.pop()
        return codes

    def _remember(self, codes: Sequence[Code], images: Sequence[Pixels]) -> None:
        self._fatal[_digest(codes)] = _pixels_digest(codes, images)
        while len(self._fatal) > REMEMBERED:
            self._fatal.popitem(last=False)


def _digest(codes: Sequence[Code]) -> bytes:
    history = "\0".join(f"{code.seen} {code.text}" for code in codes)
    return hashlib.sha256(history.encode()).digest()


def _pixels_digest(codes: Sequence[Code], images: Sequence[Pixels]) -> bytes:
    """Return the digest of the images that the last code sees.

    Rollouts of another question may hold the same code.
    """
    total = hashlib.blake2b(digest_size=32)
    for image in images[: codes[-1].seen]:
        total.update(repr(image.shape).encode())
        total.update(np.ascontiguousarray(image).data)
    return total.digest()


def observation(finished: Finished, options: PythonOptions, codes: int = 1) -> Output:
    """Return what the policy sees.

    Args:
        finished: what the server measured of the call.
        options: the sandbox's.
        codes: how many codes ran: each adds its share to the limits of time.

    Raises:
        ToolError: the policy's code failed or was stopped.
        ToolUnavailable: the sandbox failed.
    """
    text = cut(finished.output, options.max_text)
    if finished.begun == 0:
        raise ToolUnavailable(f"the sandbox failed before the code ran: {text}")
    fate = _fate(finished, options, codes)
    if fate is None and not finished.error:
        return text, tuple(finished.images)
    parts = [text, f"[{fate}]" if fate else ""]
    raise ToolError("\n".join(part for part in parts if part))


def _fate(finished: Finished, options: PythonOptions, codes: int) -> str | None:
    """Return why the process ended early, from what the server measured itself.

    None if it did not end early.
    """
    if finished.killed == "output":
        return f"stopped: more than {MAX_OUTPUT // MIB} MiB of output"
    if finished.killed == "wall":
        wall_s = options.wall_s * codes
        return f"stopped after {wall_s:g} s, of which {finished.cpu_s:.1f} s of CPU time"
    if finished.killed:
        return "stopped: the result was not readable"
    if finished.complete:
        return None
    number = finished.status & 0x7F  # the signal in a status of wait(2)
    if number == signal.SIGKILL:
        # Nobody but the kernel kills here: at the limit of CPU time, or for want of memory on the
        # machine.
        cpu_s = options.cpu_s * codes
        if finished.cpu_s >= cpu_s - 0.5:
            return f"stopped after {cpu_s} s of CPU time"
        raise ToolUnavailable(
            "the machine is out of memory: the kernel killed a call within its limits"
        )
    if number:
        return f"crashed: {_signal_name(number)}"
    return "the process ended before its result: os._exit, or a closed file descriptor"


def _signal_name(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
        return f"{name}, perhaps out of memory"
    return name


def cut(output: bytes, limit: int) -> str:
    """Return head and tail of the output, with the number of bytes left out between them.

    Args:
        output: what the code printed.
        limit: bytes that are shown: three quarters head, a quarter tail.
    """
    if len(output) > limit:
        tail = limit // 4
        gap = f"\n[... {len(output) - limit} bytes cut ...]\n".encode()
        output = output[: limit - tail] + gap + output[len(output) - tail :]
    return output.decode("utf-8", "replace").rstrip("\n")
