"""The tool server: it opens a recipe's tools, routes calls to them, and closes them.

A Ray actor, or a plain object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from axpo.texts import has_surrogate
from tool_server.arguments import MAX_SIZE, echo, too_large
from tool_server.config import NAME, Limits, MCPConfig, ToolConfig, ToolServerConfig
from tool_server.functions import open_function
from tool_server.mcp_tools import open_server
from tool_server.runner import ToolRunner
from tool_server.stats import ToolStats
from tool_server.threads import in_thread
from tool_server.tool import EarlierCall, Tool, ToolResult, ToolStatus, ToolUnavailable

log = logging.getLogger(__name__)

CLOSE_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Offer:
    """A tool as clients know it.

    Attributes:
        schema: OpenAI function schema, as Qwen's chat template renders it inside `<tools>`.
        retries: times that a call is run again if infrastructure failed it.
    """

    schema: dict[str, Any]
    retries: int


@dataclass(frozen=True)
class _Entry:
    """An entry of the recipe that brings one tool or, from an MCP server, several.

    Attributes:
        where: what messages call it.
        limits: of each of its tools.
        open: opens the tools; may take seconds.
    """

    where: str
    limits: Limits
    open: Callable[[], list[Tool]]


class ToolServer:
    """Serve the tools of a recipe.

    It holds no state of any rollout, so any server answers any call, and one that Ray restarts
    goes on.

    Tools open with the first call of any method, side by side, each in a thread. If one cannot
    open, every method raises ToolUnavailable, which names the tool. What failed to open is tried
    again by the next call: a server that Ray restarted tries until it serves.
    """

    def __init__(self, config: ToolServerConfig) -> None:
        self._config = config
        self._opening: asyncio.Task[dict[str, ToolRunner]] | None = None
        self._closed = False

    async def offers(self) -> dict[str, Offer]:
        """Return the tools by name, in the recipe's order, once all are open."""
        return {
            name: Offer(schema(runner.tool), runner.limits.retries)
            for name, runner in (await self._runners()).items()
        }

    async def schemas(self) -> list[dict[str, Any]]:
        """Return the OpenAI function schemas, in the recipe's order."""
        return [offer.schema for offer in (await self.offers()).values()]

    async def call(
        self,
        name: str,
        arguments: Any,
        images: Sequence[Any],
        earlier: Sequence[tuple[str, dict[str, Any], int]] = (),
    ) -> ToolResult:
        """Run one call. Whatever the policy wrote, this returns.

        Args:
            name: the tool.
            arguments: what the policy wrote.
            images: pixels or Ray references to pixels: those of the question, then those of
                earlier observations.
            earlier: the rollout's calls before this one, as (name, arguments, number of images at
                that time).

        Raises:
            ToolUnavailable: the tools do not open. Nothing else is raised.
        """
        runners = await self._runners()
        if too_large(arguments):
            return oversized()
        if not isinstance(name, str) or name not in runners:
            return unknown(name, runners)
        if has_surrogate(arguments):
            return unreadable()
        earlier_calls = [EarlierCall(*call) for call in earlier]
        result = await runners[name].run(arguments, images, earlier_calls)
        return replace(result, tool=name)

    async def take_stats(self) -> dict[str, ToolStats]:
        """Return the numbers of every tool since they were last taken."""
        return {name: runner.take_stats() for name, runner in (await self._runners()).items()}

    async def ping(self) -> None:
        """Return once the server serves."""
        await self._runners()

    async def close(self) -> None:
        """Free what the tools hold: jails, connections.

        Calls in flight end as their tools see fit. Later ones are refused.
        """
        opening, self._opening, self._closed = self._opening, None, True
        if opening is None:
            return
        # Tools that are still opening close themselves when they have opened (`_close_late`).
        opening.cancel()
        await asyncio.wait([opening])
        if _succeeded(opening):
            await _close([runner.tool for runner in opening.result().values()])

    async def _runners(self) -> dict[str, ToolRunner]:
        opening = self._opening
        if opening is not None and _succeeded(opening):
            return opening.result()
        if self._closed:
            raise ToolUnavailable("the tool server is closed")
        if opening is None or opening.done():
            opening = self._opening = asyncio.create_task(self._open())
        # Shielded: a caller that gives up does not end the opening for the others.
        return await asyncio.shield(opening)

    async def _open(self) -> dict[str, ToolRunner]:
        """Open all tools side by side. If one cannot open, close the others again."""
        entries = _entries(self._config)
        deadline_s = self._config.start_deadline_s
        tasks = [asyncio.create_task(_open_within(deadline_s, entry)) for entry in entries]
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            await _close(_opened(tasks))
            raise
        try:
            return self._runners_of(entries, tasks)
        except BaseException:
            await _close(_opened(tasks))
            raise

    def _runners_of(
        self, entries: list[_Entry], tasks: list[asyncio.Task[list[Tool]]]
    ) -> dict[str, ToolRunner]:
        """Return a runner for each tool, or raise the first fault."""
        tools = [task.result() for task in tasks]
        runners: dict[str, ToolRunner] = {}
        for entry, opened in zip(entries, tools, strict=True):
            for tool in opened:
                _check_offer(tool, entry, runners)
                runners[tool.name] = ToolRunner(tool, entry.limits, self._config.servers)
        return runners


def schema(tool: Tool) -> dict[str, Any]:
    """Return the OpenAI function schema, as Qwen's chat template renders it inside `<tools>`."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


def unknown(name: Any, known: Iterable[str]) -> ToolResult:
    """Return the answer to a call of a tool that is not offered."""
    text = f"unknown tool {echo(str(name))}, known: {', '.join(known)}"
    return ToolResult(ToolStatus.TOOL_ERROR, text)


def oversized() -> ToolResult:
    """Return the answer to arguments that are `too_large`."""
    text = f"arguments are too large, at most {MAX_SIZE} characters are allowed"
    return ToolResult(ToolStatus.TOOL_ERROR, text)


def unreadable() -> ToolResult:
    """Return the answer to arguments that no tool could write to a file or send.

    A tool that tried would fail, and that would look like a failure of the machine.
    """
    text = "arguments: half a surrogate pair in a text; write whole characters"
    return ToolResult(ToolStatus.TOOL_ERROR, text)


def _entries(config: ToolServerConfig) -> list[_Entry]:
    own = [_tool_entry(name, tool) for name, tool in config.tools.items()]
    others = [_mcp_entry(server, config.start_deadline_s) for server in config.mcp]
    return own + others


def _tool_entry(name: str, tool: ToolConfig) -> _Entry:
    where = f"tools.tools.{name}"
    function = tool.function
    if function is not None:

        def open_user_function() -> list[Tool]:
            return [open_function(name, function, pure=tool.pure)]

        return _Entry(where, tool, open_user_function)

    try:
        kind = tool.kind_as(name)
        suggested, most = kind.default_limits(), kind.most_at_once()
    except Exception as error:  # a kind of the user's may be broken on this node alone
        raise _unavailable(where, error) from error

    def open_kind() -> list[Tool]:
        opened = kind.open(name)
        # A user's function in place of a kind is easily one that should have been `function`.
        if not isinstance(opened, Tool):
            raise TypeError(f"{kind.name} returns {type(opened).__name__}, which is no Tool")
        return [opened]

    # The kind's own limits count if the recipe leaves one open.
    left_open = suggested.keys() - tool.model_fields_set
    limits = tool.model_copy(update={field: suggested[field] for field in left_open})
    if most is not None and limits.concurrency > most:
        limits = limits.model_copy(update={"concurrency": most})
    return _Entry(where, limits, open_kind)


def _mcp_entry(server: MCPConfig, deadline_s: float) -> _Entry:
    return _Entry(f"tools.mcp ({server.label})", server, partial(open_server, server, deadline_s))


def _check_offer(tool: Tool, entry: _Entry, runners: dict[str, ToolRunner]) -> None:
    """Raise ToolUnavailable if the tool cannot be offered beside the others."""
    limits = entry.limits
    if not NAME.fullmatch(tool.name):
        raise ToolUnavailable(f"{entry.where}: cannot offer a tool named {echo(tool.name)}")
    if tool.name in runners:
        raise ToolUnavailable(
            f"{entry.where}: there is another tool named {tool.name!r}; set a prefix"
        )
    if limits.cache_mb and not tool.pure:
        raise ToolUnavailable(
            f"{entry.where}: cache_mb={limits.cache_mb:g}, but {tool.name} is not a pure tool"
        )


async def _open_within(deadline_s: float, entry: _Entry) -> list[Tool]:
    opening = in_thread(entry.open, f"open-{entry.where}", late=_close_late)
    try:
        return await asyncio.wait_for(opening, deadline_s)
    except TimeoutError:
        raise ToolUnavailable(f"{entry.where}: not open after {deadline_s:g} s") from None
    except Exception as error:
        raise _unavailable(entry.where, error) from error


def _unavailable(where: str, error: Exception) -> ToolUnavailable:
    """Return the error of a tool that cannot start, naming its place in the recipe."""
    if isinstance(error, ToolUnavailable | ValueError):
        return ToolUnavailable(f"{where}: {error}")
    return ToolUnavailable(f"{where}: {type(error).__name__}: {error}")


def _close_late(tools: list[Tool]) -> None:
    for tool in tools:
        tool.close()


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _opened(tasks: Iterable[asyncio.Task[list[Tool]]]) -> list[Tool]:
    """Return the tools of the tasks that have opened theirs."""
    opened: list[Tool] = []
    for task in tasks:
        if _succeeded(task):
            opened += task.result()
    return opened


async def _close(tools: Sequence[Tool]) -> None:
    closing = [asyncio.create_task(in_thread(tool.close, f"close-{tool.name}")) for tool in tools]
    if not closing:
        return
    done, late = await asyncio.wait(closing, timeout=CLOSE_DEADLINE_S)
    for task in done:
        error = task.exception()
        if error is not None:
            log.warning("closing a tool failed", exc_info=error)
    if late:
        log.warning("%d tools did not close within %g s", len(late), CLOSE_DEADLINE_S)
