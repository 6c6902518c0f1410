r"""Read multiple-choice answers.

An answer names one option, by its letter or by its text. One that names several names none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

LONGEST = 2000
"""Characters. A longer answer names no option."""

_FONT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|mbox)\s*\{([^{}]*)\}")
# B, (b), B., (B): 12 cm
_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:[)\]]?[)\].:](.*))?", re.DOTALL)
# A letter that names a further option: with a bracket, point or colon, or a capital by itself.
# Without I, which is a word.
_FURTHER = re.compile(
    r"[(\[]\s*([A-Ja-j])\s*[)\]]|(?<![\w'])([A-Ja-j])\s*[)\].:]|(?<![\w'])([A-HJ])(?![\w'])"
)
_MARKER = re.compile(r"(?:^|(?<=\s))[(\[]?([A-J])[)\].:]:?(?=\s)")


def options(question: str) -> dict[str, str]:
    """Return the options that a question lists by letters, A first; none if it lists no two.

    They may stand on lines of their own or in one line: `(A) a cat (B) a dog`.
    """
    listed: dict[str, str] = {}
    markers = list(_MARKER.finditer(question))
    for marker, following in itertools.zip_longest(markers, markers[1:]):
        letter = marker[1]
        if letter == "A":
            listed = {}
        if letter != chr(ord("A") + len(listed)):
            continue
        text = question[marker.end() : following.start() if following else None].strip()
        # The last option ends with its line; what follows is not part of it.
        listed[letter] = text if following else text.split("\n")[0]
    return listed if len(listed) > 1 else {}


def choice(text: str, listed: Mapping[str, str] | None = None) -> str | None:
    """Return the letter of the option that an answer names, or None if it is not exactly one.

    Read are: B, (b), B. 12 cm, \\text{B}, and the text of an option that is listed.

    Args:
        text: the answer.
        listed: the texts of the options, by their letters.
    """
    if len(text) > LONGEST:
        return None
    listed = listed or {}
    plain = without_fonts(text).strip(" \t\n$*.")
    of_text = {letter for letter, option in listed.items() if same_text(option, plain)}
    found = _LETTER.fullmatch(plain)
    if found is None:
        return of_text.pop() if len(of_text) == 1 else None
    letter, rest = found[1].upper(), (found[2] or "").strip()
    if not rest or same_text(rest, listed.get(letter, "")):
        return letter
    further = {name.upper() for name in itertools.chain(*_FURTHER.findall(rest)) if name}
    further |= {other for other, option in listed.items() if same_text(option, rest)}
    if len(rest) == 1:
        further.add(rest.upper())
    return letter if further <= {letter} else None


def option_text(text: str) -> str:
    """Return what follows the letter: `12 cm` of `B. 12 cm`; the whole text if none leads it."""
    found = _LETTER.fullmatch(text.strip())
    return ((found[2] or "") if found else text).strip()


def without_fonts(text: str) -> str:
    r"""Return a text without TeX's commands for fonts: `Exit` of `\text{Exit}`."""
    return _FONT.sub(r"\1", text)


def same_text(one: str, other: str) -> bool:
    """Return whether two texts are the same, up to case, spaces and a final point."""
    return _folded(one) == _folded(other)


def _folded(text: str) -> str:
    return " ".join(without_fonts(text).casefold().split()).rstrip(".")
