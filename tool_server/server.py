"""Runs tool calls: many at once, each with a limit of concurrency, a deadline and a typed result."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tool_server.config import ToolServerConfig
from tool_server.arguments import echo
from tool_server.registry import KINDS
from tool_server.tool import EarlierCall, Output, Tool, ToolCall, ToolError, ToolResult, ToolStatus

log = logging.getLogger(__name__)


class ToolServer:
    """One per run (a Ray actor) or inside a test (a plain object). It holds no state of any rollout."""

    def __init__(self, config: ToolServerConfig) -> None:
        self._limits = config.tools
        self._tools = {name: KINDS[name].open(name, KINDS[name].options.model_validate(tool.options)) for name, tool in config.tools.items()}
        self._slots = {name: asyncio.Semaphore(tool.concurrency) for name, tool in config.tools.items()}

    async def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas, in the recipe's order."""
        return [schema(tool) for tool in self._tools.values()]

    async def call(self, name: str, arguments: Any, images: Sequence[Any], earlier: Sequence[EarlierCall] = ()) -> ToolResult:
        """Runs one call. Whatever the policy wrote, this returns; it never raises.

        `images` are pixels or Ray references to pixels: those of the question, then those of earlier observations. A plain
        function that outlives its deadline cannot be stopped: its thread is left behind, its slot is free again.
        """
        if name not in self._limits:
            return ToolResult(ToolStatus.TOOL_ERROR, f"unknown tool {echo(name)}, known: {', '.join(self._limits)}")
        tool, limit = self._tools[name], self._limits[name]
        try:
            parsed = tool.parse(arguments)
        except ToolError as error:
            return ToolResult(ToolStatus.TOOL_ERROR, str(error))
        async with self._slots[name]:
            started = time.monotonic()
            try:
                async with asyncio.timeout(limit.deadline_s) as deadline:
                    fetched = [image if isinstance(image, np.ndarray) else await image for image in images]
                    output = await _run(tool, ToolCall(parsed, fetched, earlier))
                status, (text, out_images) = ToolStatus.OK, output
            except ToolError as error:
                status, text, out_images = ToolStatus.TOOL_ERROR, str(error), ()
            except Exception as error:
                out_images = ()
                if deadline.expired():
                    status, text = ToolStatus.DEADLINE, f"{name} ran longer than {limit.deadline_s:g} s"
                else:
                    log.exception("tool %s failed", name)
                    status, text = ToolStatus.INFRASTRUCTURE, f"{name} failed: {type(error).__name__}: {error}"
        return ToolResult(status, text, out_images, time.monotonic() - started)


def start_tool_server(config: ToolServerConfig) -> Any:
    """The server as a Ray actor. It keeps no state, so Ray may restart it; calls in flight then raise in their caller."""
    import ray

    return ray.remote(ToolServer).options(num_cpus=0.1, max_concurrency=1000, max_restarts=3).remote(config)


def schema(tool: Tool) -> dict[str, Any]:
    """The OpenAI function schema, as Qwen's chat template renders it inside `<tools>`."""
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}


async def _run(tool: Tool, call: ToolCall) -> Output:
    if inspect.iscoroutinefunction(tool.run):
        return await tool.run(call)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Output] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            result = tool.run(call)
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(settle, result, error)

    # A thread of its own: in a pool, a function that hangs would hold a place that later calls wait for inside their deadline.
    threading.Thread(target=work, name=f"tool-{tool.name}", daemon=True).start()
    return await future
