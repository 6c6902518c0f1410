from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tool_server.python import build
from tool_server.sandbox.attacks import attack_options
from tool_server.sandbox.options import PythonOptions
from tool_server.sandbox.pool import JailPool
from tool_server.tool import EarlierCall, Output, Tool, ToolCall


@dataclass(frozen=True)
class Sandbox:
    """A python tool and the jails behind it."""

    tool: Tool
    pool: JailPool

    def run(self, code: Any, images: Sequence[Any] = (), earlier: Sequence[str] = ()) -> Output:
        """Return what the policy sees; raise what the tool raises."""
        return asyncio.run(self.arun(code, images, earlier))

    async def arun(
        self, code: Any, images: Sequence[Any] = (), earlier: Sequence[str] = ()
    ) -> Output:
        past = [EarlierCall("python", {"code": code}, len(images)) for code in earlier]
        call = ToolCall(self.tool.parse({"code": code}), images, past)
        return await self.tool.run(call)  # type: ignore[misc]


@pytest.fixture(scope="session")
def opened() -> Iterator[Callable[..., Sandbox]]:
    """Open sandboxes, one for all tests that want the same settings: a start takes seconds."""
    known: dict[PythonOptions, Sandbox] = {}

    def open(**settings: Any) -> Sandbox:
        options = attack_options(PythonOptions()).model_copy(update=settings)
        if options not in known:
            known[options] = Sandbox(*build("python", options))
        return known[options]

    yield open
    for sandbox in known.values():
        sandbox.pool.close()


@pytest.fixture(scope="session")
def sandbox(opened: Callable[..., Sandbox]) -> Sandbox:
    return opened()
