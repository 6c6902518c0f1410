"""Tavily's search API: one cached, rate-limited request per query of a day."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from aiolimiter import AsyncLimiter
from pydantic import BaseModel, ConfigDict, Field
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from axpo.texts import one_line
from tool_server.search.cache import DiskCache
from tool_server.search.corpus import clean
from tool_server.search.options import MAX_RETRY_AFTER_S, TavilyOptions
from tool_server.search.results import Result
from tool_server.secrets import Secrets
from tool_server.tool import ToolError, ToolUnavailable

log = logging.getLogger(__name__)

KEY = "TAVILY_API_KEY"

MAX_BYTES = 4_000_000
"""Of one answer; 20 results take about 50 kB."""

BACKOFF = wait_random_exponential(multiplier=0.5, max=8)

PARK_AFTER = 3
"""Queries in a row that failed with all their attempts, after which the provider is parked."""

PARK_S = (60.0, 900.0)
"""First and longest pause of a parked provider; it doubles while the provider stays down."""

SHAPE = {"base_url", "search_depth", "topic", "include_domains", "exclude_domains"}
"""Options that shape an answer."""

REFUSED = (400, 413, 414, 422, 431)
"""HTTP statuses about the request itself."""

FORBIDDEN = 403
"""With Tavily's own words, the key is at fault; else a firewall before it did not like a query."""

UNEXPLAINED = "no reason given"


class Failure(ToolUnavailable):
    """The provider did not answer, and another attempt may not either: key, plan, redirect."""


class Transient(Failure):
    """The provider did not answer this time. `retry_after` is what it asked for, in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Parked(Failure):
    """No request was made."""


class _Hit(BaseModel):
    title: str | None = None
    url: str | None = None
    content: str | None = None
    score: float | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    results: list[_Hit] = Field(max_length=1000)


@dataclass(frozen=True)
class _Response:
    status: int
    retry_after: float | None  # seconds
    body: bytes


class Tavily:
    """A client of Tavily. It belongs to one event loop.

    Failures raise ToolUnavailable. A query that Tavily refuses raises ToolError.
    """

    def __init__(
        self, name: str, options: TavilyOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a client. It sends nothing yet.

        Args:
            name: the tool's, for messages.
            options: of the recipe.
            clock: seconds, for the parking.

        Raises:
            ToolUnavailable: there is no key, or the cache cannot be written. Tavily answers some
                requests without a key, until it does not.
        """
        self._options = options
        self._clock = clock
        key = _key(name)
        self._secrets = Secrets([key])
        # The key is no part of the shape: it must not be written to the cache.
        shape = options.model_dump(mode="json", include=SHAPE)
        self._cache = DiskCache(
            Path(options.cache).expanduser(), json.dumps(["tavily", shape], sort_keys=True)
        )
        self._client = httpx.AsyncClient(
            base_url=options.base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=options.timeout_s,
            limits=httpx.Limits(max_connections=32),
        )
        # At most a second's requests at once; with less than one a second, one in so many seconds.
        per_minute = options.requests_per_minute
        self._limiter = AsyncLimiter(max(1.0, per_minute / 60), max(1.0, 60 / per_minute))
        self._flights: dict[Path, asyncio.Task[list[Result]]] = {}
        self._failed = 0  # queries in a row
        self._parked_until = -math.inf
        self._park_s = 0.0
        self._why_parked = ""

    async def search(self, query: str, max_results: int) -> list[Result]:
        """Return at most `max_results` results, best first: today's first answer to this query.

        Equal queries in flight share one request.
        """
        path = self._cache.path(query, max_results)
        flight = self._flights.get(path)
        if flight is None:
            cached = self._cache.get(path)
            if cached is not None:
                return cached
            # A task of its own: a caller that gives up does not take the request from the others.
            flight = asyncio.create_task(self._fetch(path, query, max_results))
            self._flights[path] = flight
            flight.add_done_callback(lambda done: self._landed(path, done))
        return await asyncio.shield(flight)

    def close(self) -> None:
        """End what is in flight.

        Without a running loop, the process's end closes the connections.
        """
        for flight in list(self._flights.values()):
            flight.cancel()
        # Kept, because the event loop holds its tasks only weakly.
        with contextlib.suppress(RuntimeError):
            self._closing = asyncio.get_running_loop().create_task(self._client.aclose())

    def _landed(self, path: Path, flight: asyncio.Task[list[Result]]) -> None:
        self._flights.pop(path, None)
        if not flight.cancelled():
            flight.exception()  # mark it as seen, even if every caller has given up

    async def _fetch(self, path: Path, query: str, max_results: int) -> list[Result]:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._options.attempts),
            wait=_wait,
            retry=retry_if_exception_type(Transient),
            reraise=True,
        )
        try:
            results: list[Result] = await attempts(self._attempt, query, max_results)
        except _Parked:
            # No request was made, so this says nothing new about the provider.
            raise
        except Failure as failure:
            self._failed += 1
            if self._failed >= PARK_AFTER or not isinstance(failure, Transient):
                self._park(str(failure))
            raise
        self._failed = 0
        self._park_s = 0.0
        return self._cache.put(path, results)

    async def _attempt(self, query: str, max_results: int) -> list[Result]:
        self._check_parked()
        async with self._limiter:
            # Asked again: others may have failed while this query waited for the rate limit.
            self._check_parked()
            try:
                # httpx's own limit is per read: a server that drips keeps it.
                async with asyncio.timeout(self._options.timeout_s):
                    response = await self._post(query, max_results)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                raise Transient(f"tavily: {type(error).__name__}") from None
        # A service may repeat the key that it was sent, in an error or in an answer.
        hide = self._secrets.hide
        _check_status(response, hide)
        hits = _hits(response.body)
        return [
            Result(
                title=hide(hit.title or ""),
                url=hide(hit.url or ""),
                snippet=hide(hit.content or ""),
                score=hit.score or 0.0,
            )
            for hit in hits[:max_results]
        ]

    async def _post(self, query: str, max_results: int) -> _Response:
        options = self._options
        payload: dict[str, object] = {
            "query": query,
            "max_results": max_results,
            "search_depth": options.search_depth,
            "topic": options.topic,
        }
        if options.include_domains:
            payload["include_domains"] = options.include_domains
        if options.exclude_domains:
            payload["exclude_domains"] = options.exclude_domains
        # Read in pieces, so that an answer without end is noticed.
        body = bytearray()
        async with self._client.stream("POST", "/search", json=payload) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Transient(f"tavily: an answer of more than {MAX_BYTES:,} bytes")
            retry_after = _retry_after(response.headers.get("Retry-After"))
            return _Response(response.status_code, retry_after, bytes(body))

    def _park(self, why: str) -> None:
        """Send no request for a while; twice as long as the last time."""
        if self._clock() < self._parked_until:
            return
        shortest_s, longest_s = PARK_S
        self._park_s = min(max(shortest_s, 2 * self._park_s), longest_s)
        self._parked_until = self._clock() + self._park_s
        self._why_parked = why
        log.warning("%s; no request for %.0f s", why, self._park_s)

    def _check_parked(self) -> None:
        left_s = self._parked_until - self._clock()
        if left_s > 0:
            raise _Parked(f"{self._why_parked}; parked, next request in {left_s:.0f} s")


def _key(name: str) -> str:
    """Return the key from the environment."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise ToolUnavailable(
            f"{name}: no key for Tavily; set {KEY} in the environment of the tool server"
        )
    if not key.isascii() or not key.isprintable():
        raise ToolUnavailable(
            f"{name}: {KEY} is no key: it holds characters that no header can carry"
        )
    return key


def _check_status(response: _Response, hide: Callable[[str], str]) -> None:
    """Raise what an HTTP status means; `hide` takes secrets out of what the service says."""
    status = response.status
    detail = _detail(response.body, hide)
    # The query is the policy's: one that is refused must not park the provider for the others.
    if status in REFUSED or (status == FORBIDDEN and detail is None):
        raise ToolError(f"the search service refused the query: {detail or UNEXPLAINED}")
    if status in (408, 429) or status >= 500:
        raise Transient(f"tavily: HTTP {status}", response.retry_after)
    if status != 200:
        raise Failure(f"tavily: HTTP {status}: {detail or UNEXPLAINED}")


def _hits(body: bytes) -> list[_Hit]:
    try:
        # Pydantic refuses lone surrogates, which a text cut in the middle of an emoji holds.
        text = clean(json.dumps(json.loads(body), ensure_ascii=False))
        return _Answer.model_validate_json(text).results
    except (ValueError, RecursionError):
        raise Transient("tavily: an answer that is not search results") from None


def _wait(state: RetryCallState) -> float:
    """Return the seconds before the next attempt."""
    # The provider's own wish comes before the backoff.
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Transient) and error.retry_after is not None:
        return min(error.retry_after, MAX_RETRY_AFTER_S)
    return BACKOFF(state)


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After, a number or a date; None if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _detail(body: bytes, hide: Callable[[str], str]) -> str | None:
    """Return Tavily's {"detail": {"error": ...}} in one line; None if it is something else."""
    try:
        answer = json.loads(body)
        detail = answer["detail"]
        text = detail["error"] if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return one_line(hide(str(text)), 200)
