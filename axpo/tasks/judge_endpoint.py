"""Ask a model behind an endpoint that speaks OpenAI's protocol for verdicts.

A request that fails for a passing reason (408, 409, 425, 429, 5xx, a slow or cut connection, a body
that is no reply) is made again, later and later. A reply that says neither yes nor no is asked for
once more. An answer that the endpoint does not take (another 4xx, for example a filter of contents)
has no verdict; a key or a model that it does not know ends the judging.
Verdicts are kept on disk by question, accepted answers, answer, model and prompt, so that no answer
is judged twice, and an evaluation that goes on asks for what is missing only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from axpo.errors import AxpoError
from axpo.tasks.judge import PROMPT_HASH, Judge, Judgement, judges, messages, verdict

LARGEST = 1 << 20
"""Bytes of a reply."""

LONGEST_WAIT_S = 60.0

PASSING = {408, 409, 425, 429}
"""And 5xx."""

REFUSED = {401, 403, 404}
"""The key, the model or the address is wrong, whatever is asked."""


class _Passing(Exception):
    """A request failed for a reason that may be gone the next time."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _NotTaken(Exception):
    """The endpoint does not take this request; others it may."""


@judges.register("endpoint")
class Endpoint(Judge):
    """A model behind an endpoint that speaks OpenAI's protocol."""

    base_url: str = Field(
        pattern=r"^https?://[^/\s]+\S*$", description="like https://api.openai.com/v1"
    )
    model: str = Field(description="as the endpoint calls it")
    key_env: str | None = Field(
        None, description="environment variable with the key; None: the endpoint needs none"
    )
    concurrency: int = Field(16, ge=1, description="requests at once, of one process")
    requests_per_minute: float | None = Field(None, gt=0, description="None: no limit")
    timeout_s: float = Field(60.0, gt=0, description="of one request")
    attempts: int = Field(8, ge=1, description="of one request that fails for a passing reason")
    backoff_s: float = Field(1.0, ge=0, description="longest wait before the second attempt")
    max_tokens: int = Field(512, ge=1, description="of a reply; models that think need them")
    cache: str | None = Field(None, description="folder of the verdicts; None: they are not kept")

    @property
    def concurrency_limit(self) -> int:
        """Return how many answers may be judged at once."""
        return self.concurrency

    def describe(self) -> str:
        """Return the model and the prompt's hash."""
        return f"{self.model}, prompt {PROMPT_HASH}"

    def check_settings(self) -> None:
        """Raise AxpoError if the environment lacks the key."""
        _headers(self)

    def check(self, timeout_s: float | None = None) -> None:
        """Ask for one verdict.

        Args:
            timeout_s: give up after one attempt of so many seconds; None: be patient.

        Raises:
            AxpoError: the key is refused, there is no such model, or the endpoint gives none.
        """
        hurried = {"attempts": 1, "timeout_s": min(timeout_s or self.timeout_s, self.timeout_s)}
        asked = self if timeout_s is None else self.model_copy(update=hurried)
        found = asked._asked(messages("What is 2 + 2?", ["4"], "It is 4"))
        if found.right is None:
            raise AxpoError(f"judge: {self.base_url}: {found.fault}")

    def judge(self, question: str, accepted: Sequence[str], answer: str) -> Judgement:
        """Return the verdict of the model, or the one that it gave before."""
        request = {"question": question, "accepted": list(accepted), "answer": answer}
        kept = _Cache(self.cache, self.model, request) if self.cache else None
        known = kept.read() if kept else None
        if known is not None:
            return known
        found = self._asked(messages(question, accepted, answer))
        if kept and found.right is not None:
            kept.write(found)
        return found

    def _asked(self, asked: list[dict[str, str]]) -> Judgement:
        reply = ""
        # A reply that says neither yes nor no is asked for once more.
        for _ in range(2):
            try:
                reply = _client(self).reply(asked)
            except _Passing as error:
                return Judgement(None, reply, f"{error}, after {_times(self.attempts)}")
            except _NotTaken as error:
                return Judgement(None, reply, str(error))
            right = verdict(reply)
            if right is not None:
                return Judgement(right, reply)
        return Judgement(
            None, reply, f"neither yes nor no, twice: {' '.join(reply.split())[:80]!r}"
        )


class _Client:
    """The connections of a process to one endpoint."""

    def __init__(self, settings: Endpoint) -> None:
        self._settings = settings
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._lock = threading.Lock()
        self._next = 0.0
        self._http = httpx.Client(
            base_url=settings.base_url.rstrip("/") + "/",
            headers=_headers(settings),
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )

    def reply(self, asked: list[dict[str, str]]) -> str:
        """Return what the model says.

        Raises:
            AxpoError: the endpoint refuses all requests.
            _NotTaken: it refuses this one.
            _Passing: the last attempt failed, too.
        """
        settings = self._settings
        body: dict[str, Any] = {"model": settings.model, "messages": asked}
        body |= {"temperature": 0, "max_tokens": settings.max_tokens}
        attempts = Retrying(
            stop=stop_after_attempt(settings.attempts),
            wait=functools.partial(_wait, settings.backoff_s),
            retry=retry_if_exception_type(_Passing),
            reraise=True,
        )
        found: str = attempts(self._request, body)
        return found

    def _request(self, body: dict[str, Any]) -> str:
        self._await_turn()
        try:
            with self._slots:
                status, headers, data = self._post(body)
        except httpx.RequestError as error:
            raise _Passing(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if status in PASSING or status >= 500:
            raise _Passing(f"status {status}", _seconds(headers.get("retry-after")))
        if status in REFUSED:
            raise AxpoError(self._refused(status, data))
        if status != 200:
            raise _NotTaken(f"refuses the request (status {status}): {_said(data)}")
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _Passing("the body is no reply") from None
        if not isinstance(content, str):
            raise _Passing("a reply without a text")
        return content

    def _post(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        # The time limit of httpx is that of a piece: a server could send one byte a minute.
        deadline = time.monotonic() + self._settings.timeout_s
        data = b""
        with self._http.stream("POST", "chat/completions", json=body) as response:
            for piece in response.iter_bytes():
                data += piece
                if time.monotonic() > deadline or len(data) > LARGEST:
                    raise _Passing("the reply is too slow or too long")
        return response.status_code, response.headers, data

    def _await_turn(self) -> None:
        """Wait until the rate limit allows the next request."""
        if self._settings.requests_per_minute is None:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self._settings.requests_per_minute
        time.sleep(max(0.0, turn - time.monotonic()))

    def _refused(self, status: int, data: bytes) -> str:
        settings = self._settings
        if status in (401, 403):
            key = f"the key in {settings.key_env}" if settings.key_env else "requests without a key"
            return f"judge: {settings.base_url} refuses {key} (status {status})"
        return f"judge: {settings.base_url} refuses the request (status {status}): {_said(data)}"


class _Cache:
    """The file of one verdict."""

    def __init__(self, folder: str, model: str, request: dict[str, Any]) -> None:
        self._content = {**request, "model": model, "prompt": PROMPT_HASH}
        key = json.dumps(self._content, sort_keys=True).encode()
        digest = hashlib.sha256(key).hexdigest()
        self._file = Path(folder) / digest[:2] / f"{digest[2:]}.json"

    def read(self) -> Judgement | None:
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            right, reply = kept["right"], kept["reply"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # it is not there, or it was cut off
        return Judgement(right, str(reply)) if isinstance(right, bool) else None

    def write(self, found: Judgement) -> None:
        text = json.dumps({**self._content, "right": found.right, "reply": found.reply})
        name = f"{self._file.name}.{os.getpid()}.{threading.get_ident()}"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(name)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self._file)
        except OSError as error:
            raise AxpoError(f"judge: {self._file.parent}: {error.strerror}") from None


_clients: dict[Endpoint, _Client] = {}
_clients_lock = threading.Lock()


def _client(settings: Endpoint) -> _Client:
    """Return the client of these settings; its limits are those of all threads together."""
    with _clients_lock:
        if settings not in _clients:
            _clients[settings] = _Client(settings)
        return _clients[settings]


def _headers(settings: Endpoint) -> dict[str, str]:
    if settings.key_env is None:
        return {}
    key = os.environ.get(settings.key_env, "").strip()
    if not key:
        raise AxpoError(f"judge: the environment has no {settings.key_env}, its key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise AxpoError(f"judge: {settings.key_env}: expected a key of visible ASCII characters")
    return {"Authorization": f"Bearer {key}"}


def _times(attempts: int) -> str:
    return "1 attempt" if attempts == 1 else f"{attempts} attempts"


def _said(data: bytes) -> str:
    return " ".join(data.decode(errors="replace").split())[:200]


def _wait(backoff_s: float, state: RetryCallState) -> float:
    """Return seconds until the next attempt: what the endpoint asks for, or more."""
    # Random, so that requests that were refused together do not come back together.
    own = wait_random_exponential(multiplier=backoff_s, max=LONGEST_WAIT_S)(state)
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait_s if isinstance(error, _Passing) else 0.0
    return min(max(own, asked), LONGEST_WAIT_S)


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0  # a date
