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

from tool_server.search.cache import DiskCache
from tool_server.search.corpus import clean
from tool_server.search.options import MAX_RETRY_AFTER_S, TavilyOptions
from tool_server.search.results import Result
from tool_server.tool import ToolError, ToolUnavailable

log = logging.getLogger(__name__)

KEY = "TAVILY_API_KEY"

MAX_BYTES = 4_000_000
"""Of one answer; 20 results take about 50 kB."""

BACKOFF = wait_random_exponential(multiplier=0.5, max=8)

PARK_AFTER = 3
"""Queries in a row that failed with all their attempts."""

PARK_S = (60.0, 900.0)
"""First and longest pause; it doubles while the provider stays down."""


class Failure(ToolUnavailable):
    """The provider did not answer, and another attempt may not either: key, plan, redirect."""


class Transient(Failure):
    """The provider did not answer this time. `retry_after` is what it asked for, in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Hit(BaseModel):
    title: str | None = None
    url: str | None = None
    content: str | None = None
    score: float | None = None


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    results: list[_Hit] = Field(max_length=1000)


class Tavily:
    """Belongs to one event loop. Failures raise ToolUnavailable; a query that Tavily refuses raises ToolError."""

    def __init__(
        self, name: str, options: TavilyOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Sends nothing. Raises ToolUnavailable without a key: Tavily answers some requests without one, until it does not."""
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise ToolUnavailable(
                f"{name}: no key for Tavily; set {KEY} in the environment of the tool server"
            )
        if not key.isascii() or not key.isprintable():
            raise ToolUnavailable(
                f"{name}: {KEY} is no key: it holds characters that no header can carry"
            )
        self._options, self._clock = options, clock
        shape = options.model_dump(
            mode="json",
            include={"base_url", "search_depth", "topic", "include_domains", "exclude_domains"},
        )
        self._cache = DiskCache(
            Path(options.cache).expanduser(), json.dumps(["tavily", shape], sort_keys=True)
        )
        self._client = httpx.AsyncClient(
            base_url=options.base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=options.timeout_s,
            limits=httpx.Limits(max_connections=32),
        )
        self._limiter = AsyncLimiter(
            max(1.0, options.requests_per_minute / 60), max(1.0, 60 / options.requests_per_minute)
        )
        self._flights: dict[Path, asyncio.Task[list[Result]]] = {}
        self._failed = 0
        self._parked_until, self._park_s, self._why = -math.inf, 0.0, ""

    async def search(self, query: str, max_results: int) -> list[Result]:
        """At most `max_results` results, best first: today's first answer to this query. Equal queries in flight share one request."""
        path = self._cache.path(query, max_results)
        flight = self._flights.get(path)
        if flight is None:
            cached = self._cache.get(path)
            if cached is not None:
                return cached
            # A task of its own: a caller that gives up does not take the request from the others.
            flight = self._flights[path] = asyncio.create_task(
                self._fetch(path, query, max_results)
            )
            flight.add_done_callback(lambda done: self._landed(path, done))
        return await asyncio.shield(flight)

    def close(self) -> None:
        """Ends what is in flight. Without a running loop the process's end closes the connections."""
        for flight in list(self._flights.values()):
            flight.cancel()
        with contextlib.suppress(RuntimeError):
            self._closing = asyncio.get_running_loop().create_task(self._client.aclose())

    def _landed(self, path: Path, flight: asyncio.Task[list[Result]]) -> None:
        self._flights.pop(path, None)
        if not flight.cancelled():
            flight.exception()  # seen, also where every caller has given up

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
            raise
        except Failure as failure:
            self._failed += 1
            if self._failed >= PARK_AFTER or not isinstance(failure, Transient):
                self._park(str(failure))
            raise
        self._failed, self._park_s = 0, 0.0
        return self._cache.put(path, results)

    async def _attempt(self, query: str, max_results: int) -> list[Result]:
        self._check_parked()
        async with self._limiter:
            self._check_parked()
            try:
                async with asyncio.timeout(
                    self._options.timeout_s
                ):  # httpx's own limit is per read: a server that drips passes it
                    status, retry_after, body = await self._post(query, max_results)
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                raise Transient(f"tavily: {type(error).__name__}") from None
        if status == 400:
            raise ToolError(f"the search service refused the query: {_detail(body)}")
        if status == 429 or status == 408 or status >= 500:
            raise Transient(f"tavily: HTTP {status}", retry_after)
        if status != 200:
            raise Failure(f"tavily: HTTP {status}: {_detail(body)}")
        try:
            # Pydantic refuses lone surrogates, which a text cut in the middle of an emoji holds.
            answer = _Answer.model_validate_json(
                clean(json.dumps(json.loads(body), ensure_ascii=False))
            )
        except (ValueError, RecursionError):
            raise Transient("tavily: an answer that is not search results") from None
        return [
            Result(hit.title or "", hit.url or "", hit.content or "", hit.score or 0.0)
            for hit in answer.results[:max_results]
        ]

    async def _post(self, query: str, max_results: int) -> tuple[int, float | None, bytes]:
        """Status, seconds of Retry-After, body."""
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
        body = bytearray()
        async with self._client.stream("POST", "/search", json=payload) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Transient(f"tavily: an answer of more than {MAX_BYTES:,} bytes")
            return (
                response.status_code,
                _retry_after(response.headers.get("Retry-After")),
                bytes(body),
            )

    def _park(self, why: str) -> None:
        if self._clock() < self._parked_until:
            return
        self._park_s = min(max(PARK_S[0], 2 * self._park_s), PARK_S[1])
        self._parked_until, self._why = self._clock() + self._park_s, why
        log.warning("%s; no request for %.0f s", why, self._park_s)

    def _check_parked(self) -> None:
        left = self._parked_until - self._clock()
        if left > 0:
            raise _Parked(f"{self._why}; parked, next request in {left:.0f} s")


class _Parked(Failure):
    """No request was made."""


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Transient) and error.retry_after is not None:
        return min(error.retry_after, MAX_RETRY_AFTER_S)
    return BACKOFF(state)


def _retry_after(header: str | None) -> float | None:
    """Seconds, from a number or a date; None where there is neither."""
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


def _detail(body: bytes) -> str:
    """Tavily's {"detail": {"error": ...}} in one line."""
    try:
        answer = json.loads(body)
        detail = answer["detail"]
        text = detail["error"] if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError, RecursionError):
        text = "no reason given"
    return " ".join(clean(str(text)).split())[:200]
