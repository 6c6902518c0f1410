"""`python`: run the policy's code in the sandbox, and answer as a notebook would.

The answer is text and figures.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from tool_server.arguments import define, parse
from tool_server.sandbox.layers import isolation
from tool_server.sandbox.options import MAX_CODE, MAX_OUTPUT, MIB, PythonOptions
from tool_server.sandbox.places import OutOfMemory
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
    ToolStopped,
    ToolUnavailable,
    tool_kinds,
)

POLICYS_SHARE = 0.8
"""Of a call's deadline: what the policy's code may take of it, the earlier codes included.

The rest is for the sandbox itself. So time that the policy took never ends as infrastructure.
"""

LOST = "an earlier call was stopped when it ran again; what it defined is gone"

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

    def most_at_once(self) -> int:
        """Return the slots of the pool."""
        return self.slot_count()


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

    It keeps nothing of any rollout: a session is replayed from the rollout's own calls. So no
    rollout, and no fault of the machine, can change what another one finds.
    """

    def __init__(self, name: str, options: PythonOptions, pool: JailPool) -> None:
        self._name = name
        self._options = options
        self._pool = pool

    async def run(self, call: ToolCall) -> Output:
        """Run the code of a call, after the codes of its session."""
        codes = [*self._history(call), Code(call.arguments.code, len(call.images))]
        left_s = math.inf if call.deadline_s is None else POLICYS_SHARE * call.deadline_s
        note = ""
        while True:
            wall_s = min(self._options.wall_s * len(codes), left_s)
            ran = Ran(len(codes), wall_s)
            finished = await self._run(codes, call.images, wall_s)
            if _ended_well(finished) or finished.begun in (0, len(codes)):
                return observation(finished, self._options, ran, note)
            # An earlier code ended its process, as it did when it was called, if it does that
            # each time. It left nothing behind: run the others without it.
            if not _ended_itself(finished):
                _check_machine(finished)
                note = f"[{LOST}]"
            del codes[finished.begun - 1]
            left_s -= finished.wall_s
            if left_s <= 0:
                raise ToolStopped(f"[stopped: the earlier calls took {finished.wall_s:.0f} s]")

    async def _run(
        self, codes: Sequence[Code], images: Sequence[Pixels], wall_s: float
    ) -> Finished:
        texts = [code.text for code in codes]
        seen = [code.seen for code in codes]
        return await self._pool.call(texts, images, seen, wall_s)

    def _history(self, call: ToolCall) -> list[Code]:
        """Return the rollout's earlier codes, without those that could not be parsed."""
        codes: list[Code] = []
        if self._options.session != "rollout":
            return codes
        for earlier in call.earlier:
            if earlier.name != self._name:
                continue
            try:
                arguments = parse(PythonArguments, earlier.arguments)
            except ToolError:
                continue
            codes.append(Code(arguments.code, earlier.images))
        return codes


@dataclass(frozen=True)
class Ran:
    """What a process was given: so many codes, and so many seconds for all of them."""

    codes: int
    wall_s: float


def _ended_well(finished: Finished) -> bool:
    return finished.complete and not finished.killed


def _ended_itself(finished: Finished) -> bool:
    """Return whether the code ended its process: it exited or crashed."""
    return not finished.killed and _signal(finished) != signal.SIGKILL


def _signal(finished: Finished) -> int:
    """Return the signal that ended the process, from a status of wait(2); 0: none."""
    return finished.status & 0x7F


def _check_machine(finished: Finished) -> None:
    """Raise ToolUnavailable if there is evidence that the machine ended the process."""
    if finished.out_of_memory is OutOfMemory.MACHINE:
        raise ToolUnavailable("the machine is out of memory: the kernel killed a call for it")


def observation(finished: Finished, options: PythonOptions, ran: Ran, note: str = "") -> Output:
    """Return what the policy sees.

    Args:
        finished: what the server measured of the call.
        options: the sandbox's.
        ran: what the process was given.
        note: shown after the output.

    Raises:
        ToolError: the policy's code failed.
        ToolStopped: its process ended early.
        ToolUnavailable: the sandbox failed.
    """
    text = cut(finished.output, options.max_text)
    if finished.begun == 0:
        raise ToolUnavailable(f"the sandbox failed before the code ran: {text}")
    fate = _fate(finished, options, ran)
    shown = "\n".join(part for part in (text, note, f"[{fate}]" if fate else "") if part)
    if fate is not None:
        raise ToolStopped(shown)
    if finished.error:
        raise ToolError(shown)
    return shown, tuple(finished.images)


def _fate(finished: Finished, options: PythonOptions, ran: Ran) -> str | None:
    """Return why the process ended early, from what the server measured itself.

    None if it did not end early. What no evidence lays on the machine is the policy's.
    """
    if finished.killed == "output":
        return f"stopped: more than {MAX_OUTPUT // MIB} MiB of output"
    if finished.killed == "wall":
        return f"stopped after {ran.wall_s:g} s, of which {finished.cpu_s:.1f} s of CPU time"
    if finished.killed:
        return "stopped: the result was not readable"
    if finished.complete:
        return None
    number = _signal(finished)
    if number == signal.SIGKILL:
        return _why_killed(finished, options, ran)
    if number:
        return f"crashed: {_signal_name(number)}"
    return "the process ended before its result: os._exit, or a closed file descriptor"


def _why_killed(finished: Finished, options: PythonOptions, ran: Ran) -> str:
    """Return why the kernel killed the process: at a limit, or for want of memory."""
    cpu_s = options.cpu_s * ran.codes
    if finished.cpu_s >= cpu_s - 0.5:
        return f"stopped after {cpu_s} s of CPU time"
    _check_machine(finished)
    if finished.out_of_memory is OutOfMemory.CALL:
        return f"stopped: more than {options.memory_mib} MiB of memory"
    return "stopped: the process was killed"


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
