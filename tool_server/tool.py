"""What a tool is, and the typed outcome of a call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.registry import Registry, Variant

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB, [height, width, 3]."""


class ToolStatus(StrEnum):
    """Every call ends in exactly one of these."""

    OK = "ok"
    TOOL_ERROR = "tool_error"  # the policy's fault; the text tells it what to do better
    INFRASTRUCTURE = "infrastructure"  # the tool or the cluster failed; never the policy's fault
    DEADLINE = "deadline"  # the tool ran longer than its deadline
    OVERLOADED = "overloaded"  # the queue is full; only between server and client, which waits and asks again


@dataclass(frozen=True)
class ToolResult:
    """What a call returns. `text` is for the policy where the status is OK or TOOL_ERROR, for the log otherwise."""

    status: ToolStatus
    text: str
    images: tuple[Pixels, ...] = ()
    seconds: float = 0.0  # running time, waiting for a free slot not included
    tool: str = ""  # that the call reached; empty where there is none of that name, or the call was refused unread


class ToolError(Exception):
    """Raised by a tool for anything the policy got wrong; the message is what the policy reads."""


class ToolUnavailable(Exception):
    """Raised where a tool cannot start here, or cannot serve for now: infrastructure. One line: what is missing, how to get it."""


@dataclass(frozen=True)
class EarlierCall:
    """A call that the rollout made before, as the policy wrote it."""

    name: str
    arguments: dict[str, Any]
    images: int  # how many images of the rollout there were


@dataclass(frozen=True)
class ToolCall:
    """One call as a tool gets it.

    `images` are all images of the rollout so far: those of the question, then those of earlier observations. `earlier` are the
    rollout's earlier calls in order: a tool that keeps state between turns derives it from them, so that a fork, a retry or a
    resumed run starts from the same state.
    """

    arguments: Any  # what Tool.parse returned
    images: Sequence[Pixels] = ()
    earlier: Sequence[EarlierCall] = ()


Output: TypeAlias = tuple[str, tuple[Pixels, ...]]
"""Text and images of the observation."""


@dataclass(frozen=True)
class Tool:
    """A tool, ready to run.

    A plain `run` is called in a thread of its own, a coroutine function on the event loop. It returns the observation, or raises
    ToolError (the policy's fault) or anything else (infrastructure).
    """

    name: str  # as the policy sees it
    description: str
    parameters: dict[str, Any]  # JSON schema of the arguments, as the policy sees it
    parse: Callable[[Any], Any]  # what the policy wrote -> what `run` gets; raises ToolError
    run: Callable[[ToolCall], Output | Awaitable[Output]]
    pure: bool = False  # equal arguments and images give equal results, so results may be cached
    close: Callable[[], None] = lambda: None  # frees what the tool holds


class ToolKind(Variant):
    """An implementation that a recipe can offer under any name.

    The fields of a subclass are the tool's options in the recipe. They are checked before anything
    starts.
    """

    @abstractmethod
    def open(self, name: str) -> Tool:
        """Return the tool, ready to run under the name that the policy sees.

        This may take seconds and runs once per server.

        Raises:
            ToolUnavailable: the tool cannot start here.
        """

    def default_limits(self) -> dict[str, Any]:
        """Return limits (`tool_server.config.Limits`) for those that the recipe leaves open."""
        return {}


tool_kinds = Registry("tools", ToolKind, core="open", key="kind")
