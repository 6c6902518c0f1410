"""Texts from outside: say what cannot be text, and show values in messages that stay short.

JSON can spell half a surrogate pair ("\\ud83d"). Python keeps it as a character, but no tokenizer
takes it and no file in UTF-8 holds it.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 4_000_000
"""Of one text. The longest contexts are a million tokens, of about four characters each."""
MAX_DEPTH = 64
"""Lists and objects inside each other. Deeper ones cannot be pickled or written as JSON again."""
MANY = 50
"""Texts of a list that are looked at together."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBERS = frozenset((int, float, bool, type(None)))


def shown(value: Any, limit: int = 80) -> str:
    """Return a value as a message shows it: as Python writes it, with its middle left out."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit
    short.maxlevel = 3
    return one_line(short.repr(value), 2 * limit)


def one_line(text: str, limit: int = 400) -> str:
    """Return a message without line breaks, cut after `limit` characters, that any file can hold.

    Args:
        text: it may repeat what somebody's file holds.
        limit: characters.
    """
    line = printable(" ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else f"{line[:limit]} ..."


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped one probably means; None if there is none like it."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    # Half a name is less alike than a name with a letter too much.
    found = found or [one for one in names if len(name) > 2 and one.startswith(name)]
    return found[0] if found else None


def printable(text: str) -> str:
    """Return a text that a terminal shows and does not obey, as Python writes control characters.

    Escape sequences can rename a window, write the clipboard or hide lines; marks of direction can
    show a name backwards. Tabs and line breaks stay.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], clean(text))


def clean(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def has_surrogate(value: Any) -> bool:
    """Return whether a text inside of a value has half a surrogate pair."""
    return any(_SURROGATE.search(text) for text, _ in _texts(value))


def check_text(value: Any) -> None:
    """Check the texts of a value, however deep they are inside of it.

    Raises:
        ValueError: a text has half a surrogate pair or is too long, or there are too many lists and
            objects inside each other.
    """
    for text, depth in _texts(value):
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and objects inside each other")
        _check_one(text)


def _texts(value: Any) -> Iterator[tuple[str, int]]:
    """Yield every text inside of a value, keys included, and how deep it is.

    An empty text stands for what is too deep without any.
    """
    # With a list instead of recursion: the depth is not ours.
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        parts: list[Any] = []
        if isinstance(found, str):
            yield found, depth
        elif isinstance(found, Mapping):
            parts = [*found.keys(), *found.values()]
        elif isinstance(found, Sequence) and not isinstance(found, bytes | bytearray):
            parts = _joined(found)
        if parts and depth >= MAX_DEPTH:
            yield "", depth + 1
        # A recorded rollout is thousands of numbers: they have no text, and are most of the work.
        waiting += [(part, depth + 1) for part in parts if type(part) not in _NUMBERS]


def _joined(values: Sequence[Any]) -> list[Any]:
    """Return the parts of a list; many short texts as one: a rollout has a text for each token."""
    parts = list(values)
    if len(parts) < MANY or not all(type(part) is str for part in parts):
        return parts
    text = "".join(parts)
    # Longer ones may each be short enough.
    return [text] if len(text) <= MAX_CHARACTERS else parts


def _check_one(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    half = _SURROGATE.search(text)
    if half is not None:
        spelled = f"\\u{ord(half[0]):04x}"
        raise ValueError(f"half a surrogate pair ({spelled}) at character {half.start() + 1}")
