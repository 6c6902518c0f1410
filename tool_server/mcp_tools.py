"""The tools of a Model Context Protocol server, over stdio or streamable HTTP, as tools of a recipe."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from tool_server import leash as leash_module
from tool_server.config import MCPConfig
from tool_server.tool import Output, Pixels, Tool, ToolCall, ToolError, ToolUnavailable

MAX_TOOLS = 128
"""Tools of one server; more would fill the prompt, and a list that never ends would never open."""
MAX_MESSAGE = 300
"""Characters of a schema violation that the policy reads."""


def open_server(config: MCPConfig, deadline_s: float) -> list[Tool]:
    """Connect and list the tools. Raises ToolUnavailable where the server does not answer or lacks a tool of the recipe."""
    connection = Connection(config, deadline_s)
    try:
        return connection.tools()
    except BaseException:
        connection.close()
        raise


class Connection:
    """One MCP session on an event loop of its own, opened again by the next call after it broke."""

    def __init__(self, config: MCPConfig, deadline_s: float) -> None:
        self._config = config
        self._deadline_s = deadline_s
        self._session: _Session | None = None
        self._users = 0
        self._opening = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._thread.start()

    def tools(self) -> list[Tool]:
        """One tool for each that the recipe offers. They share the connection; the last one closed closes it."""
        try:
            listed = asyncio.run_coroutine_threadsafe(
                asyncio.wait_for(self._list(), self._deadline_s), self._loop
            ).result()
        except TimeoutError:
            raise ToolUnavailable(f"no answer within {self._deadline_s:g} s") from None
        wanted = self._config.tools or tuple(listed)
        if missing := [name for name in wanted if name not in listed]:
            raise ToolUnavailable(
                f"no tool {', '.join(missing)}; there are: {', '.join(listed) or 'none'}"
            )
        self._users = len(wanted)
        return [self._tool(listed[name]) for name in wanted]

    def close(self) -> None:
        """Ends the session and, of a command, its processes."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def call(self, name: str, arguments: dict[str, Any]) -> Output:
        """Runs on the caller's loop. Raises ToolError for what the server reports as an error of the call."""
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._call(name, arguments), self._loop)
        )

    async def _call(self, name: str, arguments: dict[str, Any]) -> Output:
        from mcp import MCPError
        from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

        session = await self._connected()
        try:
            result = await session.client.call_tool(name, arguments)
        except Exception as error:
            code = error.code if isinstance(error, MCPError) else None
            if code == INVALID_PARAMS:
                raise ToolError(str(error)) from error
            if code != INTERNAL_ERROR:
                session.stop.set()  # the session itself may be broken: the next call opens another
            raise
        text, images = await asyncio.to_thread(_content, result)
        if result.is_error:
            raise ToolError(text or f"{name} failed")
        return text, images

    async def _list(self) -> dict[str, Any]:
        client = (await self._connected()).client
        listed: dict[str, Any] = {}
        cursor = None
        while True:
            page = await client.list_tools(cursor=cursor)
            listed |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None:
                return listed
            if len(listed) > MAX_TOOLS:
                raise ToolUnavailable(f"more than {MAX_TOOLS} tools: name those to offer")

    async def _connected(self) -> _Session:
        async with self._opening:
            if self._session is None or self._session.stop.is_set():
                await self._end()
                self._session = _Session(self._config)
            session = self._session
        await asyncio.wait_for(asyncio.shield(session.ready), self._deadline_s)
        return session

    async def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.stop.set()
            if not session.ready.done():
                session.task.cancel()
            await asyncio.wait([session.task], timeout=8)

    def _tool(self, listed: Any) -> Tool:
        name, validate = listed.name, checker(listed.input_schema)

        async def run(call: ToolCall) -> Output:
            return await self.call(name, call.arguments)

        return Tool(
            name=self._config.prefix + name,
            description=" ".join((listed.description or "").split()),
            parameters=listed.input_schema,
            parse=validate,
            run=run,
            close=self._release,
        )

    def _release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.close()


class _Session:
    """A live client. The SDK's context must be left by the task that entered it, so one task holds it open until `stop`."""

    def __init__(self, config: MCPConfig) -> None:
        self.client: Any = None
        self.stop = asyncio.Event()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._hold(config))

    async def _hold(self, config: MCPConfig) -> None:
        from mcp import Client

        try:
            async with AsyncExitStack() as stack:
                transport = await _transport(config, stack)
                self.client = await stack.enter_async_context(Client(transport))
                self.ready.set_result(None)
                await self.stop.wait()
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(ToolUnavailable(_reason(error)))
                self.ready.exception()  # nobody may be waiting
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self.stop.set()


def checker(schema: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """A check of arguments against a server's schema, raising ToolError. Raises ToolUnavailable for a schema that is none."""
    from jsonschema import Draft202012Validator, SchemaError, validators
    from jsonschema.exceptions import best_match
    from referencing import Registry

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ToolUnavailable(
            f"its schema is no JSON schema: {error.message[:MAX_MESSAGE]}"
        ) from error
    # A pattern of theirs on a text of the policy's can keep Python's regular expressions busy for ever, and with them this
    # process: patterns are the MCP server's to check. An empty registry: a reference in a schema fetches nothing.
    without_patterns = validators.extend(
        Draft202012Validator, {"pattern": None, "patternProperties": None}
    )
    validator = without_patterns(schema, registry=Registry())

    def check(written: Any) -> dict[str, Any]:
        if not isinstance(written, dict):
            raise ToolError("arguments must be an object")
        if fault := best_match(validator.iter_errors(written)):
            at = ".".join(str(part) for part in fault.absolute_path)
            raise ToolError(f"{at + ': ' if at else ''}{fault.message}"[:MAX_MESSAGE])
        return written

    return check


async def _transport(config: MCPConfig, stack: AsyncExitStack) -> Any:
    from mcp import StdioServerParameters

    if config.url is None:
        # The SDK passes on HOME, LOGNAME, PATH, SHELL, TERM and USER, and nothing else that is not named here.
        environment = {name: _environment(name) for name in config.env}
        if shutil.which(config.command[0]) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), config.command[0])
        # The SDK starts it from this thread, whose end is the parent's death to the kernel: it lives as long as the connection.
        leash = ["-IS", leash_module.__file__, str(os.getpid()), *config.command]
        return StdioServerParameters(command=sys.executable, args=leash, env=environment)
    if config.token_env is None:
        return config.url
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {_environment(config.token_env)}"}
    # The SDK's own time limits; the deadline of a call comes first.
    http = await stack.enter_async_context(
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300))
    )
    return streamable_http_client(config.url, http_client=http)


def _environment(name: str) -> str:
    if name not in os.environ:
        raise ToolUnavailable(f"the environment variable {name} is not set")
    return os.environ[name]


def _content(result: Any) -> Output:
    """Text parts joined by lines, images decoded under limits; what else there is, is named."""
    import base64
    import binascii

    from tool_server.images import ImageError, decode

    texts: list[str] = []
    images: list[Pixels] = []
    for part in result.content:
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "image":
            try:
                images.append(decode(base64.b64decode(part.data, validate=True)))
            except (binascii.Error, ImageError) as error:
                texts.append(f"[an image left out: {error}]")
        else:
            texts.append(f"[{part.type} left out]")
    if not result.content and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(texts), tuple(images)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (
        str(error)
        if isinstance(error, ToolUnavailable)
        else f"no MCP server: {type(error).__name__}: {error}"
    )
