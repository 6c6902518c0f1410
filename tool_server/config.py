"""Which tools a run offers, and the limits of each.

Everything that can be wrong without starting anything is found here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

# A kind of tool is registered when its module is imported.
import tool_server.python
import tool_server.search.tools
import tool_server.zoom  # noqa: F401
from axpo.texts import closest
from tool_server.functions import load
from tool_server.tool import ToolKind, tool_kinds

L = TypeVar("L", bound="Limits")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Names of functions in OpenAI's schema, and the dots that MCP allows."""


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Breaker(Section):
    """When a tool is left alone for a while.

    A tool that fails again and again is not asked for that time: its calls are answered as
    infrastructure at once.
    """

    failures: int = Field(
        default=10,
        ge=1,
        description="infrastructure failures and deadlines in a row that open the circuit",
    )
    seconds: float = Field(
        default=10.0, gt=0, description="seconds until one call is let through again"
    )


class Limits(Section):
    """The limits of one tool on one server."""

    deadline_s: float = Field(
        default=10.0,
        gt=0,
        description="seconds one call may run; waiting for a free slot does not count",
    )
    concurrency: int = Field(
        default=8, ge=1, description="calls of this tool that run at once on a server"
    )
    queue: int = Field(
        default=1024,
        ge=0,
        description=(
            "calls that may wait for a slot; the client of a further one waits and asks again"
        ),
    )
    rate_per_s: float | None = Field(
        default=None,
        gt=0,
        description="calls started a second, all servers together; None: no limit",
    )
    retries: int = Field(
        default=1,
        ge=0,
        description=(
            "times a call that infrastructure failed is run again; 0 for a tool that must not run "
            "twice"
        ),
    )
    breaker: Breaker = Field(
        default_factory=Breaker, description="when the tool is left alone for a while"
    )
    cache_mb: float = Field(
        default=0.0,
        ge=0,
        description="results of a pure tool kept by arguments and images, in MiB; 0: none",
    )
    max_characters: int = Field(
        default=20_000,
        ge=1,
        description="characters of a result's text; the rest is cut, and said to be cut",
    )
    max_images: int = Field(
        default=8, ge=0, description="images of a result; the rest is left out, and said to be"
    )
    max_image_pixels: int | None = Field(
        default=None,
        ge=1,
        description="pixels of an image of a result; a larger one is scaled down. "
        "None: the recipe's images.max_pixels, beyond which the model sees nothing",
    )


class ToolConfig(Limits):
    """One tool: a kind with its options, or a function of the user's."""

    kind: str | None = Field(
        default=None,
        description=(
            "implementation, or a class of your own as package.module:Name; None: the one of the "
            "tool's own name"
        ),
    )
    function: str | None = Field(
        default=None, description="a Python function as package.module:name"
    )
    pure: bool = Field(
        default=False, description="of a function: equal arguments and images give equal results"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the tool's own settings")

    def kind_as(self, name: str) -> ToolKind:
        """Return the kind with its options, for a tool that the policy sees as `name`.

        Raises:
            ValueError: there is no such kind, or (pydantic's ValidationError) it does not take
                these options.
        """
        return tool_kinds.class_of(self.kind or name).model_validate(self.options)


class MCPConfig(Limits):
    """A Model Context Protocol server whose tools are offered.

    It is a command that speaks the protocol on stdin and stdout, or an address.
    """

    command: tuple[str, ...] = Field(
        default=(), description="program and arguments, started once per tool server"
    )
    env: tuple[str, ...] = Field(
        default=(),
        description="environment variables that the command gets beside HOME, PATH and the like",
    )
    url: str | None = Field(
        default=None, pattern=r"^https?://", description="address of a streamable HTTP server"
    )
    token_env: str | None = Field(
        default=None, description="environment variable with the bearer token of `url`"
    )
    tools: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="tools offered; None: all"
    )
    prefix: str = Field(default="", description="put before each tool's name")

    @model_validator(mode="after")
    def _one_transport(self) -> MCPConfig:
        if bool(self.command) == bool(self.url):
            raise ValueError("tools.mcp: give each server a command or a url, and not both")
        if (self.env and not self.command) or (self.token_env and not self.url):
            raise ValueError("tools.mcp: env belongs to a command, token_env to a url")
        return self

    @property
    def label(self) -> str:
        """What messages call this server."""
        return self.url or " ".join(self.command)


def checked(tools: dict[str, ToolConfig], where: str = "tools.tools") -> dict[str, ToolConfig]:
    """Return the tools by name, as they came.

    Args:
        tools: from a section of the recipe.
        where: the section, for messages.

    Raises:
        ValueError: a tool cannot be. The message names the first bad field and what is wrong.
    """
    for name, tool in tools.items():
        _check_tool(f"{where}.{name}", name, tool)
    return tools


def _check_tool(where: str, name: str, tool: ToolConfig) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: a name is 1 to 64 characters of [A-Za-z0-9_.-]")
    if tool.function is not None:
        _check_function(where, tool.function, tool)
    elif tool.pure:
        raise ValueError(f"{where}.pure: only of a function; the other tools know")
    else:
        _check_kind(where, name, tool)


def _check_function(where: str, function: str, tool: ToolConfig) -> None:
    if tool.kind is not None or tool.options:
        raise ValueError(f"{where}: function goes with neither kind nor options")
    try:
        load(function)
    except ValueError as error:
        raise ValueError(f"{where}.function={function!r}: {error}") from None


def _check_kind(where: str, name: str, tool: ToolConfig) -> None:
    try:
        tool.kind_as(name)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(["options", *map(str, fault["loc"])])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = tool_kinds.class_of(tool.kind or name).model_fields
            near = closest(str(fault["loc"][-1]), known)
            message = f"unknown key; did you mean {near}?" if near else "unknown key"
        raise ValueError(f"{where}.{field}: {message}") from None
    except ValueError as error:
        field = ".kind" if tool.kind else ""
        raise ValueError(f"{where}{field}: {error}") from None


class ToolServerConfig(Section):
    """The tools of a run and the actors that serve them."""

    tools: Annotated[dict[str, ToolConfig], AfterValidator(checked)] = Field(
        default_factory=lambda: {"image_zoom_in": ToolConfig()},
        description="name that the policy sees -> tool, in the order of the prompt",
    )
    mcp: tuple[MCPConfig, ...] = Field(
        default=(), description="MCP servers whose tools are offered after these"
    )
    servers: int = Field(
        default=1,
        ge=1,
        description="tool server actors, spread over the nodes; any of them answers any call",
    )
    cpus_per_server: float = Field(default=0.1, ge=0, description="CPUs reserved in Ray for one")
    start_deadline_s: float = Field(
        default=120.0, gt=0, description="seconds for all tools of a server to open"
    )

    def within(self, max_image_pixels: int | None) -> ToolServerConfig:
        """Return the section with a limit for the images of every tool that has none of its own."""
        if max_image_pixels is None:
            return self
        tools = {name: _within(tool, max_image_pixels) for name, tool in self.tools.items()}
        mcp = tuple(_within(server, max_image_pixels) for server in self.mcp)
        return self.model_copy(update={"tools": tools, "mcp": mcp})


def _within(limits: L, max_image_pixels: int) -> L:
    if limits.max_image_pixels is not None:
        return limits
    return limits.model_copy(update={"max_image_pixels": max_image_pixels})
