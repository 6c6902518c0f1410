"""What a tool is, and the typed outcome of a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB, [height, width, 3]."""


class ToolStatus(StrEnum):
    """Every call ends in exactly one of these."""

    OK = "ok"
    TOOL_ERROR = "tool_error"  # the policy's fault; the text tells it what to do better
    INFRASTRUCTURE = "infrastructure"  # the tool or the cluster failed; never the policy's fault
    DEADLINE = "deadline"  # the tool ran longer than its deadline


@dataclass(frozen=True)
class ToolResult:
    """What a call returns. `text` is for the policy where the status is OK or TOOL_ERROR, for the log otherwise."""

    status: ToolStatus
    text: str
    images: tuple[Pixels, ...] = ()
    seconds: float = 0.0  # running time, waiting for a free slot not included


class ToolError(Exception):
    """Raised by a tool for anything the policy got wrong; the message is what the policy reads."""


@dataclass(frozen=True)
class Tool:
    """A tool, declared once: the argument model gives both the schema the policy sees and the checks on what it wrote.

    `run(arguments, images, options)` gets validated arguments and all images of the rollout so far: those of the question, then
    those of earlier observations. A plain function runs in a thread, a coroutine function on the event loop. It returns the text
    and images of the observation, or raises `ToolError`.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    options: type[BaseModel]  # settings from the recipe, checked before anything starts
    run: Callable[[Any, Sequence[Pixels], Any], tuple[str, tuple[Pixels, ...]] | Awaitable[tuple[str, tuple[Pixels, ...]]]]
