"""The tool server: opens a recipe's tools, routes calls to them, closes them. A Ray actor, or a plain object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tool_server.arguments import MAX_SIZE, echo, too_large
from tool_server.config import NAME, Limits, MCPConfig, ToolConfig, ToolServerConfig
from tool_server.runner import ToolRunner
from tool_server.stats import ToolStats
from tool_server.threads import in_thread
from tool_server.tool import EarlierCall, Tool, ToolResult, ToolStatus, ToolUnavailable

log = logging.getLogger(__name__)

CLOSE_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Offer:
    """A tool as clients know it."""

    schema: dict[
        str, Any
    ]  # OpenAI function schema, as Qwen's chat template renders it inside `<tools>`
    retries: int


class ToolServer:
    """It holds no state of any rollout, so any server answers any call, and one that Ray restarts goes on.

    Tools open with the first call of any method, side by side, each in a thread. Where one cannot, every method raises
    ToolUnavailable naming it.
    """

    def __init__(self, config: ToolServerConfig) -> None:
        self._config = config
        self._opening: asyncio.Task[dict[str, ToolRunner]] | None = None
        self._closed = False

    async def offers(self) -> dict[str, Offer]:
        """The tools by name, in the recipe's order; returns once all are open."""
        return {
            name: Offer(schema(runner.tool), runner.limits.retries)
            for name, runner in (await self._runners()).items()
        }

    async def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas, in the recipe's order."""
        return [offer.schema for offer in (await self.offers()).values()]

    async def call(
        self,
        name: str,
        arguments: Any,
        images: Sequence[Any],
        earlier: Sequence[tuple[str, dict[str, Any], int]] = (),
    ) -> ToolResult:
        """Runs one call. Whatever the policy wrote, this returns; it raises nothing but ToolUnavailable.

        `images` are pixels or Ray references to pixels: those of the question, then those of earlier observations.
        `earlier` are (name, arguments, number of images then) of the rollout's calls before this one. A plain function that
        outlives its deadline cannot be stopped: its thread is left behind, its slot is free again.
        """
        runners = await self._runners()
        if too_large(arguments):
            return oversized()
        if not isinstance(name, str) or name not in runners:
            return unknown(name, runners)
        return replace(
            await runners[name].run(arguments, images, [EarlierCall(*call) for call in earlier]),
            tool=name,
        )

    async def take_stats(self) -> dict[str, ToolStats]:
        """Numbers of every tool since they were last taken."""
        return {name: runner.take_stats() for name, runner in (await self._runners()).items()}

    async def ping(self) -> None:
        """Returns where the server serves."""
        await self._runners()

    async def close(self) -> None:
        """Frees what the tools hold: jails, connections. Calls in flight end as their tools see fit; later ones are refused."""
        opening, self._opening, self._closed = self._opening, None, True
        if opening is None:
            return
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            await _close([runner.tool for runner in opening.result().values()])

    async def _runners(self) -> dict[str, ToolRunner]:
        opening = self._opening
        if (
            opening is not None
            and opening.done()
            and not opening.cancelled()
            and opening.exception() is None
        ):
            return opening.result()
        if self._closed:
            raise ToolUnavailable("the tool server is closed")
        if (
            opening is None or opening.done()
        ):  # what failed may work later: a server that Ray restarted tries until it serves
            opening = self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(opening)

    async def _open(self) -> dict[str, ToolRunner]:
        config = self._config
        entries: list[tuple[str, Limits, Callable[[], list[Tool]]]] = [
            *(
                (f"tools.tools.{name}", _limits(name, entry), _tool_opener(name, entry))
                for name, entry in config.tools.items()
            ),
            *(
                (f"tools.mcp ({entry.label})", entry, _mcp_opener(entry, config.start_deadline_s))
                for entry in config.mcp
            ),
        ]
        tasks = [
            asyncio.create_task(_open_within(config.start_deadline_s, where, opener))
            for where, _, opener in entries
        ]
        try:
            opened = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            done = [
                task
                for task in tasks
                if task.done() and not task.cancelled() and task.exception() is None
            ]
            await _close([tool for task in done for tool in task.result()])
            raise
        runners: dict[str, ToolRunner] = {}
        fault: BaseException | None = next(
            (result for result in opened if isinstance(result, BaseException)), None
        )
        for (where, limits, _), tools in zip(entries, opened, strict=True):
            for tool in tools if not isinstance(tools, BaseException) else ():
                if not NAME.fullmatch(tool.name):
                    fault = fault or ToolUnavailable(
                        f"{where}: cannot offer a tool named {echo(tool.name)}"
                    )
                elif tool.name in runners:
                    fault = fault or ToolUnavailable(
                        f"{where}: there is another tool named {tool.name!r}; set a prefix"
                    )
                elif limits.cache_mb and not tool.pure:
                    fault = fault or ToolUnavailable(
                        f"{where}: cache_mb={limits.cache_mb:g}, but {tool.name} is not a pure tool"
                    )
                runners[tool.name] = ToolRunner(tool, limits, config.servers)
        if fault is not None:
            await _close(
                [tool for tools in opened if not isinstance(tools, BaseException) for tool in tools]
            )
            raise fault
        return runners


def schema(tool: Tool) -> dict[str, Any]:
    """The OpenAI function schema, as Qwen's chat template renders it inside `<tools>`."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


def unknown(name: Any, known: Iterable[str]) -> ToolResult:
    """The answer to a call of a tool that is not offered."""
    return ToolResult(
        ToolStatus.TOOL_ERROR, f"unknown tool {echo(str(name))}, known: {', '.join(known)}"
    )


def oversized() -> ToolResult:
    """The answer to arguments that are `too_large`."""
    return ToolResult(
        ToolStatus.TOOL_ERROR, f"arguments are too large, at most {MAX_SIZE} characters are allowed"
    )


def _limits(name: str, entry: ToolConfig) -> Limits:
    """The recipe's limits, and the kind's own where the recipe leaves one open."""
    if entry.function is not None:
        return entry
    suited = entry.kind_as(name).default_limits()
    return entry.model_copy(
        update={
            field: value for field, value in suited.items() if field not in entry.model_fields_set
        }
    )


def _tool_opener(name: str, entry: ToolConfig) -> Callable[[], list[Tool]]:
    def opener() -> list[Tool]:
        if entry.function is not None:
            from tool_server.functions import open_function

            return [open_function(name, entry.function, entry.pure)]
        return [entry.kind_as(name).open(name)]

    return opener


def _mcp_opener(entry: MCPConfig, deadline_s: float) -> Callable[[], list[Tool]]:
    def opener() -> list[Tool]:
        from tool_server.mcp_tools import open_server

        return open_server(entry, deadline_s)

    return opener


async def _open_within(
    deadline_s: float, where: str, opener: Callable[[], list[Tool]]
) -> list[Tool]:
    def close_late(tools: list[Tool]) -> None:
        for tool in tools:
            tool.close()

    try:
        return await asyncio.wait_for(in_thread(opener, f"open-{where}", close_late), deadline_s)
    except TimeoutError:
        raise ToolUnavailable(f"{where}: not open after {deadline_s:g} s") from None
    except Exception as error:
        reason = (
            str(error)
            if isinstance(error, ToolUnavailable | ValueError)
            else f"{type(error).__name__}: {error}"
        )
        raise ToolUnavailable(f"{where}: {reason}") from error


async def _close(tools: Sequence[Tool]) -> None:
    closing = [asyncio.create_task(in_thread(tool.close, f"close-{tool.name}")) for tool in tools]
    if not closing:
        return
    done, late = await asyncio.wait(closing, timeout=CLOSE_DEADLINE_S)
    for task in done:
        if error := task.exception():
            log.warning("closing a tool failed", exc_info=error)
    if late:
        log.warning("%d tools did not close within %g s", len(late), CLOSE_DEADLINE_S)
