"""Say in one line what happened to an actor.

Ray wraps what an actor raised: the first line of its message is the name of the process, and what
happened stands somewhere below. Every message about a lost worker, rank or node is made here.
"""

from __future__ import annotations

import re

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    RayActorError,
    RayTaskError,
)

from axpo.errors import AxpoError
from axpo.texts import one_line

MAX = 300
_KILLED = "Worker unexpectedly exits with a connection error code"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PID = re.compile(r"\bpid[:=] ?(\d+)")
_IP = re.compile(r"\bip[:=] ?([\w.:]+)")
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failure)\b")
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")


class ActorsLost(AxpoError):
    """Actors or their nodes are gone, and nothing here can replace them."""


def cause_of(error: BaseException) -> str:
    """Return what an error is about, in one line: what the actor raised, or how it ended."""
    error = root_of(error)
    if isinstance(error, ActorUnavailableError):
        return f"it cannot be reached{_where(str(error))}: its process or its node is gone"
    if isinstance(error, RayActorError | NodeDiedError):
        return _end_of(error)
    text = str(error).strip()
    if not text:
        # A TimeoutError of asyncio says nothing.
        return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    if isinstance(error, TimeoutError) and not isinstance(error, GetTimeoutError):
        return one_line(text, MAX)
    return f"{type(error).__name__}: {one_line(text, MAX)}"


def root_of(error: BaseException) -> BaseException:
    """Return what the actor's own code raised, if the error is Ray's wrapper of it."""
    # An actor that calls another one may pass its wrapper on.
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


def same_cause(why: str) -> str:
    """Return a cause without what differs from one time to the next: ids, ports, sizes."""
    return _NUMBER.sub("#", why)


def _end_of(error: BaseException) -> str:
    """Return how an actor ended, from Ray's message of several lines."""
    text = _COLOUR.sub("", str(error))
    where = _where(text)
    if getattr(error, "actor_init_failed", False):
        # The message holds the traceback of the constructor.
        return one_line(_raised(text), MAX) + where
    if "node has died" in text or "node is dead" in text or isinstance(error, NodeDiedError):
        return f"its node was lost{where}"
    if "out of memory" in text.lower() and "OOM killer" not in text:
        return f"Ray killed it, because its node ran out of memory{where}"
    if _KILLED in text:
        return f"its process was killed, or crashed{where}: out of memory, kill -9, or a C library"
    # A message of its own: the lines without those that only name the actor.
    lines = [line.strip() for line in text.splitlines() if line and not line.startswith("\t")]
    own = [line for line in lines if line != ActorDiedError.BASE_ERROR_MSG]
    return one_line(" ".join(own), MAX) + where if own else type(error).__name__


def _where(text: str) -> str:
    """Return the process and the node that Ray's message names, in brackets."""
    pid, ip = _PID.search(text), _IP.search(text)
    parts = [f"process {pid[1]}" if pid else "", f"on {ip[1]}" if ip else ""]
    named = " ".join(part for part in parts if part)
    return f" ({named})" if named else ""


def _raised(text: str) -> str:
    """Return the line of a traceback that says what was raised."""
    lines = [line for line in text.splitlines() if line.strip()]
    # The lines of a message may follow it; those of the traceback are indented.
    raised = [line for line in lines if _ERROR.match(line)]
    return (raised or lines or [""])[-1]
