"""`python`: runs the policy's code in the sandbox and answers as a notebook would, with text and figures."""

from __future__ import annotations

import hashlib
import signal
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tool_server.arguments import define
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import MAX_CODE, MAX_OUTPUT, MIB, PythonOptions
from tool_server.sandbox.pool import JailPool
from tool_server.sandbox.process import Finished
from tool_server.tool import (
    Output,
    Pixels,
    Tool,
    ToolCall,
    ToolError,
    ToolKind,
    ToolUnavailable,
    tool_kinds,
)

REMEMBERED = 10_000
"""Histories known to end their process: 64 bytes each."""

Code: TypeAlias = tuple[str, int]
"""What to run, and how many of the rollout's images it sees: an observation's images are not there before it."""


def _code(code: str) -> str:
    """What is refused before any process starts."""
    if len(code) > MAX_CODE:
        raise PydanticCustomError("code", f"longer than {MAX_CODE // 1024} KiB")
    if "\0" in code:
        raise PydanticCustomError("code", "contains a NUL character")
    try:
        size = len(code.encode())
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "code", "is not valid Unicode text: it contains half of a surrogate pair"
        ) from None
    if size > MAX_CODE:
        raise PydanticCustomError("code", f"longer than {MAX_CODE // 1024} KiB")
    return code


class PythonArguments(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    code: Annotated[str, AfterValidator(_code)] = Field(description="Python code to run")


DESCRIPTION = (
    "Run Python code and see what it prints, the value of its last expression, and the figures it shows. numpy, scipy, sympy, pandas, "
    "matplotlib and PIL can be imported. The images are the files image_0.png, image_1.png, ... and the PIL images in the list `images`. "
)
SESSIONS = {
    "call": "Every call starts afresh.",
    "rollout": "Variables and files of earlier calls are still there.",
}


class PythonTool:
    """One tool over one pool. It keeps nothing of any rollout: a session is replayed from the rollout's own calls."""

    def __init__(self, name: str, options: PythonOptions, pool: JailPool) -> None:
        self._name, self._options, self._pool = name, options, pool
        self._fatal: OrderedDict[bytes, bytes] = (
            OrderedDict()
        )  # histories whose last code ended its process -> on which images

    async def run(self, call: ToolCall) -> Output:
        history = self._history(call) if self._options.session == "rollout" else []
        while True:
            codes: list[Code] = [*history, (call.arguments.code, len(call.images))]
            finished = await self._pool.call(
                [code for code, _ in codes], call.images, [seen for _, seen in codes]
            )
            if finished.complete and not finished.killed:
                return observation(finished, self._options, len(codes))
            if 0 < finished.begun < len(codes):
                # An earlier code ended its process: its call was answered so, and it left nothing behind.
                self._remember(history[: finished.begun], call.images)
                del history[finished.begun - 1]
                continue
            if finished.begun == len(codes):
                self._remember(codes, call.images)
            return observation(finished, self._options, len(codes))

    def _history(self, call: ToolCall) -> list[Code]:
        """The rollout's earlier codes, without those that could not be parsed and those that ended their process."""
        from tool_server.arguments import parse

        codes: list[Code] = []
        for earlier in call.earlier:
            if earlier.name != self._name:
                continue
            try:
                codes.append((parse(PythonArguments, earlier.arguments).code, earlier.images))  # type: ignore[attr-defined]
            except ToolError:
                continue
            known = self._fatal.get(_digest(codes))
            if known is not None and known == _pixels_digest(codes, call.images):
                codes.pop()
        return codes

    def _remember(self, codes: Sequence[Code], images: Sequence[Pixels]) -> None:
        self._fatal[_digest(codes)] = _pixels_digest(codes, images)
        while len(self._fatal) > REMEMBERED:
            self._fatal.popitem(last=False)


def _digest(codes: Sequence[Code]) -> bytes:
    return hashlib.sha256("\0".join(f"{seen} {code}" for code, seen in codes).encode()).digest()


def _pixels_digest(codes: Sequence[Code], images: Sequence[Pixels]) -> bytes:
    """Of the images that the last code sees: rollouts of another question may hold the same code."""
    total = hashlib.blake2b(digest_size=32)
    for image in images[: codes[-1][1]]:
        total.update(repr(image.shape).encode())
        total.update(np.ascontiguousarray(image).data)
    return total.digest()


def observation(finished: Finished, options: PythonOptions, codes: int = 1) -> Output:
    """What the policy sees. Raises ToolError where its code failed or was stopped, ToolUnavailable where the sandbox failed."""
    text = cut(finished.output, options.max_text)
    if finished.begun == 0:
        raise ToolUnavailable(f"the sandbox failed before the code ran: {text}")
    fate = _fate(finished, options, codes)
    if fate is None and not finished.error:
        return text, tuple(finished.images)
    raise ToolError("\n".join(part for part in (text, fate and f"[{fate}]") if part))


def _fate(finished: Finished, options: PythonOptions, codes: int) -> str | None:
    """Why the process ended early, from what the server measured itself; None if it did not."""
    if finished.killed == "output":
        return f"stopped: more than {MAX_OUTPUT // MIB} MiB of output"
    if finished.killed == "wall":
        return f"stopped after {options.wall_s * codes:g} s, of which {finished.cpu_s:.1f} s of CPU time"
    if finished.killed:
        return "stopped: the result was not readable"
    if finished.complete:
        return None
    if finished.status & 0x7F == signal.SIGKILL:
        # Nobody but the kernel kills here: at the limit of CPU time, or for want of memory on the machine.
        if finished.cpu_s >= options.cpu_s * codes - 0.5:
            return f"stopped after {options.cpu_s * codes} s of CPU time"
        raise ToolUnavailable(
            "the machine is out of memory: the kernel killed a call within its limits"
        )
    if number := finished.status & 0x7F:
        hint = (
            ", perhaps out of memory"
            if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
            else ""
        )
        return f"crashed: {signal.Signals(number).name if number in set(signal.Signals) else number}{hint}"
    return "the process ended before its result: os._exit, or a closed file descriptor"


def cut(output: bytes, limit: int) -> str:
    """Head and tail of the output, with the number of bytes left out between them."""
    if len(output) > limit:
        tail = limit // 4
        gap = f"\n[... {len(output) - limit} bytes cut ...]\n".encode()
        output = output[: limit - tail] + gap + output[len(output) - tail :]
    return output.decode("utf-8", "replace").rstrip("\n")


def build(name: str, options: PythonOptions) -> tuple[Tool, JailPool]:
    """The tool and its pool. Raises ToolUnavailable where the machine lacks a layer that the options do not excuse."""
    pool = JailPool(options, *isolation(options))
    tool = PythonTool(name, options, pool)
    return define(
        name, DESCRIPTION + SESSIONS[options.session], PythonArguments, tool.run, close=pool.close
    ), pool


@tool_kinds.register("python")
class Python(ToolKind, PythonOptions):
    """Run the policy's Python code in a sandbox."""

    def open(self, name: str) -> Tool:
        """Return the tool, with warm interpreters of its own."""
        tool, _ = build(name, self)
        return tool

    def default_limits(self) -> dict[str, Any]:
        """Return limits behind those of the pool, which has a queue and deadlines of its own."""
        return {"concurrency": self.slot_count(), "deadline_s": 60 + 4 * self.wall_s}
