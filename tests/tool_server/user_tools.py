"""Tools as a user would write them, and some that a user should not have written."""

import asyncio
import os
import signal
import threading
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from tool_server.arguments import define
from tool_server.tool import Output, Tool, ToolCall, ToolError, ToolKind


class Unit(Enum):
    CELSIUS = "C"
    KELVIN = "K"


def convert(degrees: float, unit: Unit, digits: Annotated[int, Field(ge=0, le=6)] = 1) -> str:
    """Convert a temperature to Fahrenheit.

    The long story, which the policy does not read.

    Args:
        degrees: The temperature,
            in `unit`.
        unit: C or K.
    """
    if unit is Unit.KELVIN and degrees < 0:
        raise ToolError("degrees: below absolute zero")
    celsius = degrees if unit is Unit.CELSIUS else degrees - 273.15
    return f"{celsius * 9 / 5 + 32:.{digits}f} F"


def page(form: str) -> Any:
    """Show a page whose text was cut in the middle of a character.

    Args:
        form: how it is shown.
    """
    text = "half a smile: \ud83d"
    if form == "error":
        raise ToolError(text)
    if form == "failure":
        raise OSError(text)
    return {"text": text, "list": [text], "object": {"page": text}}[form]


async def echo(text: str = "") -> str:
    """Return the text."""
    return text


def count(words: list[str], how: Literal["all", "different"] = "all") -> dict[str, int]:
    """Count words."""
    return {
        "words": len(words if how == "all" else set(words)),
        "main_thread": int(threading.current_thread() is threading.main_thread()),
    }


def darken(index: int, call: ToolCall):
    """Show an image at half its brightness."""
    return f"after {[c.name for c in call.earlier]}", [call.images[index] // 2]


def floating(call: ToolCall):
    """Return an image of a wrong type."""
    return np.zeros((2, 2, 3))


async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"


def die(directory: str, times: int) -> str:
    """Kill the server that runs this, the first `times` times it is called."""
    marks = Path(directory)
    (marks / f"{time.monotonic_ns()}").touch()
    if len(list(marks.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def freeze(directory: str) -> str:
    """Stop the process that runs this, once."""
    try:
        Path(directory, "frozen").touch(exist_ok=False)
    except FileExistsError:
        return "thawed"
    os.kill(os.getpid(), signal.SIGSTOP)
    return "continued"


def whose() -> str:
    """Say which process this is."""
    return str(os.getpid())


class Text(BaseModel):
    text: str


class Shout(ToolKind):
    """Say a text loudly."""

    mark: str = Field("!", max_length=1)

    def open(self, name: str) -> Tool:
        def run(call: ToolCall) -> Output:
            return call.arguments.text.upper() + self.mark, ()

        return define(name, "Say it loudly.", Text, run)


def open_shout(name: str) -> Tool:
    """Open `Shout` as it comes."""
    return Shout().open(name)


def untyped(a, b: int) -> str:
    """Lack a type hint."""
    return ""


def undocumented(a: int) -> str:
    return ""


def variadic(*words: str) -> str:
    """Take anything."""
    return ""


def unresolved(a: "Missing") -> str:  # noqa: F821
    """Name a type that is nowhere."""
    return ""


def array(a: np.ndarray) -> str:
    """Ask for what JSON cannot say."""
    return ""


def anything(a: Any) -> str:
    """Take any JSON value."""
    return str(a)


class Panic(BaseException):
    """What a library in another language may raise."""


ENDS = {
    "exit": SystemExit(3),
    "panic": Panic("out of bounds"),
    "interrupt": KeyboardInterrupt(),
    "cancelled": asyncio.CancelledError(),
    "iteration": StopIteration(),
}


def ends(how: str) -> str:
    """Raise what is no ordinary error."""
    if how in ENDS:
        raise ENDS[how]
    return "goes on"


async def ends_later(how: str) -> str:
    """Raise it on the event loop."""
    return ends(how)


def exits_when_checked(how: Annotated[str, AfterValidator(ends)]) -> str:
    """Raise it while arguments are checked."""
    return how


constant = 3
