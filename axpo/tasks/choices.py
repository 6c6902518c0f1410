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
# Nothing but further letters: `A. b, c`, `A. or c`
_ONLY_LETTERS = re.compile(r"(?:[\W_]|\b(?:[a-j]|and|or|not)\b)+", re.IGNORECASE)
_A_LETTER = re.compile(r"\b[a-j]\b", re.IGNORECASE)
# `A.`, `(A)`, `**A.**`; without a space behind it `(A)`, and `A.` at the start of a line
_MARKER = re.compile(
    r"(?:^|(?<=[\s*]))[(\[]?([A-J])[)\].:][:*]*(?=\s)"
    r"|(?:^[(\[]?|(?<=\s)[(\[])([A-J])[)\].:](?=\w)",
    re.MULTILINE,
)
_SMALL_MARKER = re.compile(r"(?:^|(?<=\s))[(\[]([a-j])[)\]](?=\s)")
_BETWEEN = " \t\n,;*|-\u2022"
"""What stands between two options and belongs to none."""
# `A. or B.` of "answer with A. or B." lists no options.
_NO_OPTION = frozenset(("", "and", "or"))
# Characters of full width, as Chinese texts have them, and two of their marks.
_WIDE = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_TYPESET = str.maketrans(_WIDE | {"\u3000": " ", "\u3001": ". ", "\u3002": ". "})


def options(question: str) -> dict[str, str]:
    """Return the options that a question lists by letters, A first; none if it lists no two.

    They may stand on lines of their own or in one line: `(A) a cat (B) a dog`. Of several lists the
    last counts.
    """
    plain = question.translate(_TYPESET)
    return _listed(plain, _MARKER) or _listed(plain, _SMALL_MARKER)


def _listed(question: str, marker: re.Pattern[str]) -> dict[str, str]:
    lists: list[dict[str, str]] = []
    found = [(one[one.lastindex or 1].upper(), *one.span()) for one in marker.finditer(question)]
    for (letter, _, start), following in itertools.zip_longest(found, found[1:]):
        if letter == "A":
            lists.append({})
        if not lists or letter != _letter(len(lists[-1])):
            continue
        text = question[start : following[1] if following else None].strip()
        # The last option ends with its line; what follows is not part of it.
        is_last = following is None or following[0] != _letter(len(lists[-1]) + 1)
        lists[-1][letter] = (text.split("\n")[0] if is_last else text).rstrip(_BETWEEN)
    lists = [one for one in lists if len(one) > 1 and _NO_OPTION.isdisjoint(one.values())]
    return lists[-1] if lists else {}


def _letter(number: int) -> str:
    return chr(ord("A") + number)


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
    plain = without_fonts(text.translate(_TYPESET)).strip(" \t\n$*.")
    of_text = {letter for letter, option in listed.items() if same_text(option, plain)}
    found = _LETTER.fullmatch(plain)
    if found is None:
        return of_text.pop() if len(of_text) == 1 else None
    letter, rest = found[1].upper(), (found[2] or "").strip()
    if not rest or same_text(rest, listed.get(letter, "")):
        return letter
    further = {name.upper() for name in itertools.chain(*_FURTHER.findall(rest)) if name}
    further |= {other for other, option in listed.items() if same_text(option, rest)}
    if _ONLY_LETTERS.fullmatch(rest):
        further |= {name.upper() for name in _A_LETTER.findall(rest)}
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
    plain = without_fonts(text.translate(_TYPESET))
    return " ".join(plain.casefold().split()).rstrip(".")
