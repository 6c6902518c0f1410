"""The tool servers of a run, as their clients see them: one thing to call, whatever happens to any server."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Sequence
from typing import Any

from tool_server.arguments import too_large
from tool_server.config import ToolServerConfig
from tool_server.server import Offer, ToolServer, oversized, unknown
from tool_server.stats import summarize
from tool_server.tool import ToolResult, ToolStatus, ToolUnavailable

log = logging.getLogger(__name__)

PATIENCE_S = 900.0
"""Seconds that a call waits for a server that is not full, or for any server at all. A rollout's own deadline is usually shorter."""
PING_S = 30.0
"""A call without an answer for so long makes the client ask whether its server still serves; a server that does not answer in as
long again is given up. A tool's own deadline is the server's to keep."""
PAUSES_S = (0.02, 2.0)
"""First and longest pause before a full server is asked again; doubled each time, with jitter."""


def start_tool_servers(config: ToolServerConfig, evaluation_only: Collection[str] = ()) -> ToolPool:
    """Starts the actors and returns at once; `ready` waits for them. Needs a Ray session.

    The tools named in `evaluation_only` are there for `ToolPool.evaluating` alone.
    """
    import ray

    # max_task_retries stays 0: whether a call may run twice is the recipe's to say (`retries`), and the pool's to do.
    actor = ray.remote(ToolServer).options(
        num_cpus=config.cpus_per_server,
        max_concurrency=100_000,
        max_restarts=-1,
        scheduling_strategy="SPREAD",
    )
    return ToolPool(
        [actor.remote(config) for _ in range(config.servers)],
        config.start_deadline_s,
        evaluation_only,
    )


class ToolPool:
    """Any number of clients in any number of processes; a pickled copy starts its own counts."""

    def __init__(
        self, servers: Sequence[Any], start_deadline_s: float, hidden: Collection[str] = ()
    ) -> None:
        """`hidden`: tools that the servers have and this pool neither offers nor calls."""
        self.servers = list(servers)
        self._hidden = frozenset(hidden)
        self._start_deadline_s = start_deadline_s
        self._load = [0] * len(self.servers)
        self._turn = 0
        self._lost: dict[
            int, asyncio.Task[None]
        ] = {}  # ends when the server answers again, or never will
        self._offered: dict[str, Offer] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ToolPool, (self.servers, self._start_deadline_s, self._hidden)

    def evaluating(self) -> ToolPool:
        """The same servers with nothing hidden: another client, with counts of its own."""
        return ToolPool(self.servers, self._start_deadline_s)

    def ready(self) -> None:
        """Wait until every server has opened its tools. Raises ToolUnavailable with one line."""
        import ray

        starting = [server.ping.remote() for server in self.servers]
        try:
            ray.get(starting, timeout=self._start_deadline_s + PING_S)
        except ray.exceptions.GetTimeoutError:
            raise ToolUnavailable(
                f"the tool servers did not start within {self._start_deadline_s + PING_S:g} s"
            ) from None
        except ray.exceptions.RayTaskError as error:
            raise ToolUnavailable(str(error.cause)) from None
        except ray.exceptions.RayActorError as error:
            raise ToolUnavailable(
                f"a tool server died at its start: {str(error).splitlines()[0]}"
            ) from None

    def shutdown(self) -> None:
        """Close the tools of every server, then end the actors; one that does not answer is killed."""
        import ray

        ray.wait(
            [server.close.remote() for server in self.servers],
            num_returns=len(self.servers),
            timeout=20,
        )
        for server in self.servers:
            ray.kill(server)

    def take_stats(self) -> dict[str, dict[str, float]]:
        """Numbers of each tool since they were last taken, over all servers (see `summarize`); one that does not answer is left out."""
        import ray

        asked = [server.take_stats.remote() for server in self.servers]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=5)
        parts = []
        for reference in answered:
            try:
                parts.append(ray.get(reference, timeout=5))
            except (ray.exceptions.RayError, ToolUnavailable):
                log.warning("a tool server gave no numbers")
        return summarize(parts)

    async def schemas(self) -> list[dict[str, Any]]:
        """OpenAI function schemas of all tools, in the recipe's order. Raises ToolUnavailable."""
        return [offer.schema for offer in (await self._offers()).values()]

    async def call(
        self,
        name: str,
        arguments: Any,
        images: Sequence[Any],
        earlier: Sequence[tuple[str, dict[str, Any], int]] = (),
    ) -> ToolResult:
        """One call, answered exactly once, by the server with the fewest calls of this client in flight.

        Where a server dies in the middle of the call it is run again on another one, as often as the tool's `retries`
        allow, else it is answered as infrastructure; where a server is full it waits and asks again.
        """
        if too_large(arguments):
            return oversized()
        patience, pause = time.monotonic() + PATIENCE_S, PAUSES_S[0]
        try:
            offers = await self._offers()
            if name in self._hidden:
                return unknown(name, offers)
            offer = offers.get(name)
            while True:
                result = await self._ask(
                    offer.retries if offer else 0, "call", name, arguments, images, earlier
                )
                if result.status is not ToolStatus.OVERLOADED:
                    return result
                if time.monotonic() > patience:
                    raise ToolUnavailable(f"{result.text}, and none of them for {PATIENCE_S:g} s")
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, PAUSES_S[1])
        except ToolUnavailable as error:
            return ToolResult(ToolStatus.INFRASTRUCTURE, str(error))

    async def _offers(self) -> dict[str, Offer]:
        if self._offered is None:
            offers = await self._ask(len(self.servers), "offers")
            self._offered = {
                name: offer for name, offer in offers.items() if name not in self._hidden
            }
        return self._offered

    async def _ask(self, retries: int, method: str, *arguments: Any) -> Any:
        """What a server answers. Raises ToolUnavailable where `retries` + 1 servers were lost over it, or none serves."""
        from ray.exceptions import RayActorError, RayError

        patience = time.monotonic() + PATIENCE_S
        while True:
            index = await self._pick(patience)
            self._load[index] += 1
            try:
                return await _answer(self.servers[index], method, arguments)
            except ToolUnavailable as error:  # Ray restarted it, and its tools do not open
                self._lose(index, error)
            except (RayActorError, TimeoutError) as error:
                self._lose(index, error)
                retries -= 1
                if retries < 0:
                    raise ToolUnavailable(
                        f"a tool server was lost in the middle of a call: {type(error).__name__}"
                    ) from error
            except RayError as error:
                raise ToolUnavailable(
                    f"a tool server failed: {type(error).__name__}: {str(error).splitlines()[-1]}"
                ) from error
            finally:
                self._load[index] -= 1

    async def _pick(self, patience: float) -> int:
        """The server with the fewest calls, in turns where several have; where all are lost, the first that is back."""
        while True:
            serving = [index for index in range(len(self.servers)) if index not in self._lost]
            if serving:
                self._turn += 1
                return min(
                    serving,
                    key=lambda index: (self._load[index], (index - self._turn) % len(self.servers)),
                )
            reviving = [task for task in self._lost.values() if not task.done()]
            if not reviving:
                raise ToolUnavailable("all tool servers have ended")
            if time.monotonic() > patience:
                raise ToolUnavailable(f"no tool server answered for {PATIENCE_S:g} s")
            await asyncio.wait(reviving, timeout=1, return_when=asyncio.FIRST_COMPLETED)

    def _lose(self, index: int, error: Exception) -> None:
        """No calls for this server until it answers again."""
        if index not in self._lost:
            log.warning("tool server %d is lost: %s", index, type(error).__name__)
            self._lost[index] = asyncio.create_task(
                self._revive(index, hung=isinstance(error, TimeoutError))
            )

    async def _revive(self, index: int, hung: bool) -> None:
        import ray
        from ray.exceptions import ActorDiedError, RayError

        server = self.servers[index]
        if hung:
            ray.kill(server, no_restart=False)
        while True:
            try:
                await asyncio.wait_for(
                    _plain(server.ping.remote()), self._start_deadline_s + PING_S
                )
            except ActorDiedError:  # for good: Ray restarts what died otherwise
                return
            except (RayError, ToolUnavailable, TimeoutError):
                await asyncio.sleep(random.uniform(0.1, 0.5))
            else:
                del self._lost[index]
                return


async def _answer(server: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    """What a method returns or raises; TimeoutError where the server stopped answering."""
    import ray

    reference = getattr(server, method).remote(*arguments)
    answer = asyncio.wrap_future(reference.future())
    try:
        while not (await asyncio.wait([answer], timeout=PING_S))[0]:
            await asyncio.wait_for(_plain(server.ping.remote()), PING_S)
        return answer.result()
    except asyncio.CancelledError:
        ray.cancel(reference)  # frees its slot
        raise


async def _plain(reference: Any) -> Any:
    return await reference
