"""The tool servers of a run, as their clients see them.

There is one thing to call, whatever happens to any server.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from tool_server.arguments import too_large
from tool_server.config import ToolServerConfig
from tool_server.server import Offer, ToolServer, oversized, unknown
from tool_server.stats import summarize
from tool_server.tool import ToolResult, ToolStatus, ToolUnavailable

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

log = logging.getLogger(__name__)

PATIENCE_S = 900.0
"""Seconds that a call waits for a server that is not full, or for any server at all.

A rollout's own deadline is usually shorter.
"""

PING_S = 30.0
"""Seconds without an answer after which the client asks whether the server still serves.

A server that does not answer that question in as long again is given up. A tool's own deadline is
the server's to keep.
"""

PAUSES_S = (0.02, 2.0)
"""First and longest pause before a full server is asked again; doubled each time, with jitter."""


def start_tool_servers(
    config: ToolServerConfig,
    evaluation_only: Collection[str] = (),
    places: Sequence[Mapping[str, Any]] = (),
) -> ToolPool:
    """Start the actors and return at once. `ToolPool.ready` waits for them.

    This needs a Ray session.

    Args:
        config: the tools and their limits.
        evaluation_only: names of tools that only `ToolPool.evaluating` offers.
        places: Ray's options of each server, what it takes and where; none: spread over the nodes.
    """
    spread = {"num_cpus": config.cpus_per_server, "scheduling_strategy": "SPREAD"}
    # max_task_retries stays 0: the recipe says whether a call may run twice (`retries`), and the
    # pool runs it again. max_concurrency is out of the way: calls wait in the queues of their
    # tools, which have limits of their own.
    lasting = {"max_concurrency": 100_000, "max_restarts": -1}
    actor = ray.remote(ToolServer)
    servers = [
        actor.options(**options, **lasting).remote(config)
        for options in places or [spread] * config.servers
    ]
    return ToolPool(servers, config.start_deadline_s, evaluation_only)


class ToolPool:
    """The client of all tool servers.

    There may be any number of clients in any number of processes. A pickled copy starts its own
    counts.
    """

    def __init__(
        self, servers: Sequence[ActorHandle], start_deadline_s: float, hidden: Collection[str] = ()
    ) -> None:
        """Make a client.

        Args:
            servers: actors of `ToolServer`.
            start_deadline_s: seconds that a server may take to open its tools.
            hidden: tools that the servers have, but this pool neither offers nor calls.
        """
        self.servers = list(servers)
        self._hidden = frozenset(hidden)
        self._start_deadline_s = start_deadline_s
        self._load = [0] * len(self.servers)  # calls in flight, by server
        self._turn = 0
        # By server that is lost: the task that ends when it answers again, or never will.
        self._lost: dict[int, asyncio.Task[None]] = {}
        self._offered: dict[str, Offer] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolPool, (self.servers, self._start_deadline_s, self._hidden)

    def evaluating(self) -> ToolPool:
        """Return another client of the same servers, with nothing hidden and counts of its own."""
        return ToolPool(self.servers, self._start_deadline_s)

    def ready(self) -> None:
        """Wait until every server has opened its tools.

        Raises:
            ToolUnavailable: a server did not start; one line.
        """
        starting = [server.ping.remote() for server in self.servers]
        patience_s = self._start_deadline_s + PING_S
        try:
            ray.get(starting, timeout=patience_s)
        except GetTimeoutError:
            raise ToolUnavailable(
                f"the tool servers did not start within {patience_s:g} s"
            ) from None
        except RayTaskError as error:
            # The server's own line, without Ray's traceback.
            raise ToolUnavailable(str(error.cause)) from None
        except RayActorError as error:
            reason = str(error).splitlines()[0]
            raise ToolUnavailable(f"a tool server died at its start: {reason}") from None

    def shutdown(self) -> None:
        """Close the tools of every server, then end the actors.

        A server that does not answer is killed.
        """
        closing = [server.close.remote() for server in self.servers]
        ray.wait(closing, num_returns=len(closing), timeout=20)
        for server in self.servers:
            ray.kill(server)

    def take_stats(self) -> dict[str, dict[str, float]]:
        """Return the numbers of each tool since they were last taken, over all servers.

        See `summarize`. A server that does not answer is left out.
        """
        asked = [server.take_stats.remote() for server in self.servers]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=5)
        parts = []
        for reference in answered:
            try:
                parts.append(ray.get(reference, timeout=5))
            except (RayError, ToolUnavailable):
                log.warning("a tool server gave no numbers")
        return summarize(parts)

    async def schemas(self) -> list[dict[str, Any]]:
        """Return the OpenAI function schemas of all tools, in the recipe's order.

        Raises:
            ToolUnavailable: no server serves.
        """
        return [offer.schema for offer in (await self._offers()).values()]

    async def call(
        self,
        name: str,
        arguments: Any,
        images: Sequence[Any],
        earlier: Sequence[tuple[str, dict[str, Any], int]] = (),
    ) -> ToolResult:
        """Call a tool, on the server with the fewest calls of this client in flight.

        Every call is answered exactly once. If a server dies in the middle of the call, it is run
        again on another one, as often as the tool's `retries` allow; after that it is answered as
        infrastructure. If a server is full, the call waits and asks again.

        Args: see `ToolServer.call`.
        """
        if too_large(arguments):
            return oversized()
        patience = time.monotonic() + PATIENCE_S
        pause_s, longest_pause_s = PAUSES_S
        try:
            offers = await self._offers()
            if name in self._hidden:
                return unknown(name, offers)
            retries = offers[name].retries if name in offers else 0
            while True:
                result: ToolResult = await self._ask(
                    retries, "call", name, arguments, images, earlier
                )
                if result.status is not ToolStatus.OVERLOADED:
                    return result
                if time.monotonic() > patience:
                    raise ToolUnavailable(f"{result.text}, and none of them for {PATIENCE_S:g} s")
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, longest_pause_s)
        except ToolUnavailable as error:
            return ToolResult(ToolStatus.INFRASTRUCTURE, str(error))

    async def _offers(self) -> dict[str, Offer]:
        # The tools of a recipe do not change, so one answer serves all calls.
        if self._offered is None:
            offers = await self._ask(len(self.servers), "offers")
            self._offered = {
                name: offer for name, offer in offers.items() if name not in self._hidden
            }
        return self._offered

    async def _ask(self, retries: int, method: str, *arguments: Any) -> Any:
        """Return what a server answers.

        Raises:
            ToolUnavailable: `retries` + 1 servers were lost over it, or none serves.
        """
        patience = time.monotonic() + PATIENCE_S
        while True:
            index = await self._pick(patience)
            self._load[index] += 1
            try:
                return await _answer(self.servers[index], method, arguments)
            except ToolUnavailable as error:
                # Ray restarted the server, and its tools do not open.
                self._lose(index, error)
            except (RayActorError, TimeoutError) as error:
                self._lose(index, error)
                retries -= 1
                if retries < 0:
                    raise ToolUnavailable(
                        f"a tool server was lost in the middle of a call: {type(error).__name__}"
                    ) from error
            except RayError as error:
                reason = str(error).splitlines()[-1]
                raise ToolUnavailable(
                    f"a tool server failed: {type(error).__name__}: {reason}"
                ) from error
            finally:
                self._load[index] -= 1

    async def _pick(self, patience: float) -> int:
        """Return the server with the fewest calls; servers with equally many take turns.

        If all are lost, wait for the first that is back, until the time `patience`.
        """
        while True:
            serving = [index for index in range(len(self.servers)) if index not in self._lost]
            if serving:
                self._turn += 1
                return min(serving, key=self._rank)
            reviving = [task for task in self._lost.values() if not task.done()]
            if not reviving:
                raise ToolUnavailable("all tool servers have ended")
            if time.monotonic() > patience:
                raise ToolUnavailable(f"no tool server answered for {PATIENCE_S:g} s")
            await asyncio.wait(reviving, timeout=1, return_when=asyncio.FIRST_COMPLETED)

    def _rank(self, index: int) -> tuple[int, int]:
        return self._load[index], (index - self._turn) % len(self.servers)

    def _lose(self, index: int, error: Exception) -> None:
        """Send no calls to this server until it answers again."""
        if index not in self._lost:
            log.warning("tool server %d is lost: %s", index, type(error).__name__)
            self._lost[index] = asyncio.create_task(self._revive(index, error))

    async def _revive(self, index: int, error: Exception) -> None:
        server = self.servers[index]
        if isinstance(error, TimeoutError):  # it hangs: only a restart helps
            ray.kill(server, no_restart=False)
        while True:
            try:
                await _ping(server, self._start_deadline_s + PING_S)
            except ActorDiedError:  # for good: Ray restarts what died otherwise
                return
            except (RayError, ToolUnavailable, TimeoutError):
                await asyncio.sleep(random.uniform(0.1, 0.5))
            else:
                del self._lost[index]
                return


async def _answer(server: ActorHandle, method: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a method returns, or raise what it raises.

    Raises:
        TimeoutError: the server stopped answering.
    """
    # Ray reports a server that died. One that hangs is found by asking.
    reference = getattr(server, method).remote(*arguments)
    answer = asyncio.wrap_future(reference.future())
    try:
        while not answer.done():
            await asyncio.wait([answer], timeout=PING_S)
            if not answer.done():
                await _ping(server, PING_S)
        return answer.result()
    except asyncio.CancelledError:
        ray.cancel(reference)  # frees its slot
        raise


async def _ping(server: ActorHandle, deadline_s: float) -> None:
    await asyncio.wait_for(_plain(server.ping.remote()), deadline_s)


async def _plain(reference: ObjectRef) -> Any:
    """Return the object. `asyncio.wait_for` takes a coroutine, but not a reference of Ray's."""
    return await reference
