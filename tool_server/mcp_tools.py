"""Offer the tools of a Model Context Protocol server, over stdio or streamable HTTP."""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import json
import os
import re
import shutil
import sys
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from axpo.texts import clean, one_line
from tool_server import leash, mcp_json, mcp_log
from tool_server.config import MCPConfig
from tool_server.images import DEFAULT_LIMITS, ImageError, check, decode
from tool_server.schemas import an_object, checker, plain, plain_description
from tool_server.secrets import Secrets
from tool_server.threads import in_thread
from tool_server.tool import Output, Pixels, Tool, ToolCall, ToolError, ToolUnavailable

if TYPE_CHECKING:
    import mcp_types
    from mcp import Client, StdioServerParameters

MAX_TOOLS = 128
"""Tools of one server. More would fill the prompt, and a list that never ends would never open."""

MAX_PIXELS = 32_000_000
"""Pixels of all images of one answer: 96 MB once they are decoded."""

_SECRET_NAME = re.compile("key|token|secret|pass|cred|auth", re.IGNORECASE)

CLOSE_S = 8.0
"""Seconds that a session gets to end, with its command."""


def open_server(config: MCPConfig, deadline_s: float) -> list[Tool]:
    """Connect and return the tools of a server.

    Raises:
        ToolUnavailable: the server does not answer, or lacks a tool of the recipe.
    """
    mcp_log.bound()
    mcp_json.install()
    connection = Connection(config, deadline_s)
    try:
        return connection.tools()
    except BaseException:
        connection.close()
        raise


class Connection:
    """One MCP session on an event loop of its own. If it breaks, the next call opens it again."""

    def __init__(self, config: MCPConfig, deadline_s: float) -> None:
        self._config = config
        self._secrets = Secrets(os.environ.get(name, "") for name in _secret_names(config))
        self._deadline_s = deadline_s
        self._session: _Session | None = None
        self._users = 0  # tools that are not closed yet
        self._opening = asyncio.Lock()
        # Tools open in a thread that ends. The session needs an event loop that stays.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._thread.start()

    def tools(self) -> list[Tool]:
        """Return one tool for each that the recipe offers.

        They share the connection. The last one closed closes it.

        Raises:
            ToolUnavailable: see `open_server`.
        """
        listing = asyncio.wait_for(self._list(), self._deadline_s)
        try:
            listed = asyncio.run_coroutine_threadsafe(listing, self._loop).result()
        except TimeoutError:
            raise ToolUnavailable(f"no answer within {self._deadline_s:g} s") from None
        except Exception as error:  # a list of theirs may be anything
            # Without what led to it, whose messages may have the key.
            raise ToolUnavailable(self._secrets.hide(_reason(error))) from None
        wanted = self._config.tools or tuple(listed)
        missing = [name for name in wanted if name not in listed]
        if missing:
            known = ", ".join(listed) or "none"
            raise ToolUnavailable(f"no tool {', '.join(missing)}; there are: {known}")
        self._users = len(wanted)
        return [self._tool(listed[name]) for name in wanted]

    def close(self) -> None:
        """End the session and, if it is a command, its processes."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def call(self, name: str, arguments: dict[str, Any]) -> Output:
        """Call a tool, on the caller's event loop.

        Raises:
            ToolError: the server says that the call was wrong.
        """
        answer = asyncio.run_coroutine_threadsafe(self._call(name, arguments), self._loop)
        return await asyncio.wrap_future(answer)

    async def _call(self, name: str, arguments: dict[str, Any]) -> Output:
        from mcp import MCPError
        from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

        session = await self._connected()
        try:
            result = await session.client.call_tool(name, arguments)
        except Exception as error:
            code = error.code if isinstance(error, MCPError) else None
            said = self._secrets.hide(clean(str(error)))
            if code == INVALID_PARAMS:
                raise ToolError(said) from None
            if code != INTERNAL_ERROR:
                session.stop.set()  # the session itself may be broken: the next call opens another
            raise ToolUnavailable(f"{type(error).__name__}: {said}") from None
        # Decoding images takes long: not on the loop that serves all calls.
        text, images = await asyncio.to_thread(_content, result, self._config.max_images)
        text = self._secrets.hide(text)
        if result.is_error:
            raise ToolError(text or f"{name} failed")
        return text, images

    async def _list(self) -> dict[str, mcp_types.Tool]:
        client = (await self._connected()).client
        listed: dict[str, mcp_types.Tool] = {}
        cursor = None
        for _ in range(MAX_TOOLS):  # a page may be empty, and a list need not end
            page = await client.list_tools(cursor=cursor)
            listed |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None:
                return listed
            if len(listed) > MAX_TOOLS:
                break
        raise ToolUnavailable(f"more than {MAX_TOOLS} tools, or pages of them")

    async def _connected(self) -> _Session:
        async with self._opening:
            if self._session is None or self._session.stop.is_set():
                await self._end()
                self._session = _Session(self._config, self._secrets)
            session = self._session
        # Shielded: a call that gives up does not take the session from the others.
        await asyncio.wait_for(asyncio.shield(session.ready), self._deadline_s)
        return session

    async def _end(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        session.stop.set()
        # A session that is still connecting does not wait for `stop`.
        if not session.ready.done():
            session.task.cancel()
        await asyncio.wait([session.task], timeout=CLOSE_S)

    def _tool(self, listed: mcp_types.Tool) -> Tool:
        try:
            schema = plain(listed.input_schema, self._secrets.hide)
            fits = checker(schema)
            description = self._secrets.hide(plain_description(listed.description))
        except ToolUnavailable as error:
            raise ToolUnavailable(f"{clean(listed.name)[:80]!r}: {error}") from None

        async def run(call: ToolCall) -> Output:
            # The check waits for another process: not on the loop that serves all calls.
            arguments = await in_thread(lambda: fits(call.arguments), f"check-{listed.name}")
            return await self.call(listed.name, arguments)

        return Tool(
            name=self._config.prefix + listed.name,
            description=description,
            parameters=schema,
            parse=an_object,
            run=run,
            close=self._release,
        )

    def _release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.close()


class _Session:
    """A live client.

    The SDK's context must be left by the task that entered it. So one task holds it open until
    `stop` is set.
    """

    client: Client

    def __init__(self, config: MCPConfig, secrets: Secrets) -> None:
        self._secrets = secrets
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
                reason = self._secrets.hide(_reason(error))
                self.ready.set_exception(ToolUnavailable(reason))
                # Nobody may be waiting: mark the exception as seen, or asyncio logs it.
                self.ready.exception()
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self.stop.set()


async def _transport(config: MCPConfig, stack: AsyncExitStack) -> Any:
    """Return what the SDK's `Client` connects to; what must be closed goes onto the stack."""
    if config.url is None:
        return _command(config)
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


def _command(config: MCPConfig) -> StdioServerParameters:
    from mcp import StdioServerParameters

    # The SDK passes on HOME, LOGNAME, PATH, SHELL, TERM and USER, and nothing else that is not
    # named here.
    environment = {name: _environment(name) for name in config.env}
    program = config.command[0]
    if shutil.which(program) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    # The SDK starts the command from this thread. To the kernel, the end of this thread is the
    # parent's death, so the command lives as long as the connection.
    arguments = ["-IS", leash.__file__, str(os.getpid()), *config.command]
    return StdioServerParameters(
        command=sys.executable,
        args=arguments,
        env=environment,
        # Bytes that are no text would end the session for every call.
        encoding_error_handler="replace",
    )


def _secret_names(config: MCPConfig) -> tuple[str, ...]:
    """Return the environment variables that the server gets and must not repeat."""
    secret = [name for name in config.env if _SECRET_NAME.search(name)]
    return (*secret, *([] if config.token_env is None else [config.token_env]))


def _environment(name: str) -> str:
    if name not in os.environ:
        raise ToolUnavailable(f"the environment variable {name} is not set")
    return os.environ[name]


def _content(result: Any, max_images: int) -> Output:
    """Return the text parts, joined by lines, and the images, decoded under limits.

    Whatever else there is, is named in the text. Images beyond `max_images` or `MAX_PIXELS` are
    left out before they are decoded.
    """
    texts: list[str] = []
    images: list[Pixels] = []
    tried, pixels, left_out = 0, 0, 0
    for part in result.content:
        if part.type == "text":
            texts.append(part.text)
        elif part.type != "image":
            texts.append(f"[{part.type} left out]")
        elif tried >= max_images:
            left_out += 1
        else:
            tried += 1
            try:
                images.append(_image(part.data, MAX_PIXELS - pixels))
                pixels += images[-1].shape[0] * images[-1].shape[1]
            except (binascii.Error, ValueError, ImageError) as error:
                texts.append(f"[an image left out: {error}]")
    if left_out:
        texts.append(f"[{left_out} more images left out]")
    if not result.content and result.structured_content is not None:
        texts.append(_structured(result.structured_content))
    return clean("\n".join(texts)), tuple(images)


def _image(data: str, pixels_left: int) -> Pixels:
    """Return an image of an answer; raise ImageError or ValueError if it is refused."""
    if len(data) > 2 * DEFAULT_LIMITS.max_bytes:
        raise ImageError(f"is larger than {DEFAULT_LIMITS.max_bytes:,} bytes")
    source = base64.b64decode(data, validate=True)
    width, height = check(source)
    if width * height > pixels_left:
        raise ImageError(f"an answer has at most {MAX_PIXELS:,} pixels in all")
    return decode(source)


def _structured(content: Any) -> str:
    try:
        return json.dumps(content, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return "[structured content left out]"


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ToolUnavailable):
        return str(error)
    return f"no MCP server: {type(error).__name__}: {one_line(str(error))}"
