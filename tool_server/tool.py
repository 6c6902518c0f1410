"""What a tool is, and the typed outcome of a call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from axpo.registry import Registry, Variant

Pixels: TypeAlias = NDArray[np.uint8]
"""RGB, shape [height, width, 3]."""

Output: TypeAlias = tuple[str, tuple[Pixels, ...]]
"""Text and images of an observation."""


class ToolStatus(StrEnum):
    """How a call ended. Every call ends in exactly one of these."""

    OK = "ok"
    # The policy's fault. The text tells it what to do better.
    TOOL_ERROR = "tool_error"
    # The tool or the cluster failed, which is never the policy's fault.
    INFRASTRUCTURE = "infrastructure"
    # The tool ran longer than its deadline.
    DEADLINE = "deadline"
    # The queue is full. Only a server says so to its client, which waits and asks again.
    OVERLOADED = "overloaded"


@dataclass(frozen=True)
class ToolResult:
    """What a call returns.

    Attributes:
        status: how the call ended.
        text: for the policy if the status is OK or TOOL_ERROR, for the log otherwise.
        images: for the policy, after the text.
        seconds: running time, without the wait for a free slot.
        tool: the tool that the call reached; empty if there is none of that name, or if the call
            was refused unread.
        left_nothing: the call ended so that it left nothing behind: later calls of its rollout
            need not be told of it (`ToolCall.earlier`).
    """

    status: ToolStatus
    text: str
    images: tuple[Pixels, ...] = ()
    seconds: float = 0.0
    tool: str = ""
    left_nothing: bool = False


class ToolError(Exception):
    """Raised by a tool for what the policy got wrong. The message is what the policy reads."""


class ToolStopped(ToolError):
    """Raised by a tool with state if the call ended so that it left nothing behind."""


class ToolUnavailable(Exception):
    """Raised if a tool cannot start here, or cannot serve for now: infrastructure.

    The message is one line that says what is missing and how to get it.
    """


@dataclass(frozen=True)
class EarlierCall:
    """A call that the rollout made before, as the policy wrote it."""

    name: str
    arguments: dict[str, Any]
    images: int  # how many images the rollout had at that time


@dataclass(frozen=True)
class ToolCall:
    """One call as a tool gets it.

    A tool that keeps state between turns derives it from `earlier`. So a fork, a retry and a
    resumed run all start from the same state.

    Attributes:
        arguments: what `Tool.parse` returned.
        images: all images of the rollout so far: those of the question, then those of earlier
            observations.
        earlier: the rollout's earlier calls, in order, without those that left nothing.
        deadline_s: seconds after which the call is given up, which is infrastructure. What takes
            long because of the policy must end before, as ToolError. None: never.
    """

    arguments: Any
    images: Sequence[Pixels] = ()
    earlier: Sequence[EarlierCall] = ()
    deadline_s: float | None = None


def nothing_to_free() -> None:
    """Do nothing: the `close` of a tool that holds nothing."""


@dataclass(frozen=True)
class Tool:
    """A tool, ready to run.

    Attributes:
        name: what the policy calls it.
        description: what the policy reads about it.
        parameters: JSON schema of the arguments, as the policy sees it.
        parse: turns what the policy wrote into the arguments that `run` gets; raises ToolError.
        run: returns the observation. It raises ToolError if the policy got something wrong; any
            other exception is infrastructure. A coroutine function runs on the event loop, a plain
            function in a thread of its own.
        pure: equal arguments and images give equal results, so results may be cached.
        close: frees what the tool holds.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    parse: Callable[[Any], Any]
    run: Callable[[ToolCall], Output | Awaitable[Output]]
    pure: bool = False
    close: Callable[[], None] = nothing_to_free


class Shown(NamedTuple):
    """What the policy reads about a tool: it is part of the prompt."""

    description: str
    arguments: type[BaseModel]


class ToolKind(Variant):
    """An implementation that a recipe can offer under any name.

    The fields of a subclass are the tool's options in the recipe. They are checked before anything
    starts. A kind of your own is a class here or elsewhere, or a function of the name:

        tools: {tools: {wiki: {kind: "my_package.tools:Wiki", options: {folder: data/wiki}}}}
    """

    @abstractmethod
    def open(self, name: str) -> Tool:
        """Return the tool, ready to run under the name that the policy sees.

        This may take seconds and runs once per server.

        Raises:
            ToolUnavailable: the tool cannot start here.
        """

    def shown(self) -> Shown | None:
        """Return what the policy will read, without opening the tool; None: it is known only then.

        `axpo check` counts the tokens of the prompt by it.
        """
        return None

    def default_limits(self) -> dict[str, Any]:
        """Return values of `tool_server.config.Limits` for those that the recipe leaves open."""
        return {}

    def most_at_once(self) -> int | None:
        """Return how many calls the tool itself runs at once, None: as many as it gets.

        Further ones wait before their deadline counts: else slow calls would end those of others.
        """
        return None


tool_kinds = Registry("tools", ToolKind, core="open", key="kind")
