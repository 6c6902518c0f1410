r"""Read numbers, with or without a unit, from what people and models write.

Reading is strict: what can be meant in two ways is no number. `3 4` and `1/2/3` are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 60
"""Characters. A longer text is no number that somebody meant."""

# Characters of typeset text, and what a keyboard has for them.
_DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-")
_OTHERS = {
    "\u00a0": " ",
    "~": " ",
    "\u2044": "/",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u00d7": "\\times",
}
# The space keeps the whole part of a mixed number apart.
_FRACTIONS = {
    "\u00bc": " 1/4",
    "\u00bd": " 1/2",
    "\u00be": " 3/4",
    "\u2153": " 1/3",
    "\u2154": " 2/3",
    "\u2155": " 1/5",
    "\u2156": " 2/5",
    "\u2157": " 3/5",
    "\u2158": " 4/5",
    "\u2159": " 1/6",
    "\u215a": " 5/6",
    "\u215b": " 1/8",
    "\u215c": " 3/8",
    "\u215d": " 5/8",
    "\u215e": " 7/8",
}
_TYPESET = str.maketrans(_DASHES | _OTHERS | _FRACTIONS)

# 1{,}250 and 1\,250 in LaTeX, and a thin space in typeset text
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;:!]|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|mbox|rm)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree")
_IGNORED = re.compile(r"\\?[$%]|\\[()\[\]]|\\(?:left|right|displaystyle)(?![a-z])")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|\s")
# \frac{1}{2} and \frac12
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}|([0-9]))\s*(?:\{([^{}]+)\}|([0-9]))")
_POWER_OF_TEN = re.compile(r"\s*\\(?:times|cdot)\s*10\s*\^\s*(?:\{\s*([+-]?[0-9]+)\s*\}|([0-9]))")

_NUMBER = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,3})?"
)
_QUANTITY = re.compile(
    r"(?P<sign>[+-]?) *"
    rf"(?:(?P<whole>[0-9]+) +(?P<part>[0-9]+) */ *(?P<of>[0-9]+)|"
    rf"(?P<over>{_NUMBER}) */ *(?P<under>-?{_NUMBER})|(?P<number>{_NUMBER}))"
    # A unit begins with a letter or a sign of its own and holds digits as exponents only.
    r" *(?P<unit>(?:[^\W\d_]|[\u00b0'\"])(?:[^\d]|(?<=\^)-?\d|(?<=\^\{)-?\d)*)?"
)
_UNIT_SPELLING = re.compile(r"[\s{}\\]")


@dataclass(frozen=True)
class Quantity:
    """A number, and the unit behind it; empty if there is none."""

    value: Fraction
    unit: str


def quantity(text: str) -> Quantity | None:
    """Return the number and the unit that a text is, or None if it is not one of each.

    Read are: 1,250.5, 1{,}250, -3e4, 3 \\times 10^4, 1/3, \\frac{1}{3}, 1 1/2, 1\\frac{1}{2}, 12 %,
    $5, 12 cm, 5\\text{ m/s}^2. A per cent or dollar sign is left out.
    """
    if len(text) > 4 * LONGEST:
        return None
    plain = _plain(text)
    found = _QUANTITY.fullmatch(plain)
    if found is None or len(plain) > LONGEST:
        return None
    try:
        value = _value(found)
    except ZeroDivisionError:
        return None
    unit = _UNIT_SPELLING.sub("", found["unit"] or "").rstrip(".")
    return Quantity(-value if found["sign"] == "-" else value, unit)


def number(text: str) -> Fraction | None:
    """Return the number that a text is, or None if it is none, or has a unit."""
    found = quantity(text)
    return found.value if found is not None and not found.unit else None


def typeset(text: str) -> str:
    """Return a text with the signs that a keyboard has for those of a typesetter."""
    return text.translate(_TYPESET)


def _plain(text: str) -> str:
    """Return a text with one spelling for each thing, so that one pattern reads it."""
    plain = _THOUSANDS.sub(",", typeset(text))
    plain = _POWER_OF_TEN.sub(lambda power: f"e{power[1] or power[2]}", plain)
    plain = _DEGREES.sub("\u00b0", _TEXT.sub(r" \1", plain))
    plain = _IGNORED.sub("", plain)
    # The space keeps the whole part of `1\frac{1}{2}` apart.
    plain = _FRACTION.sub(lambda part: f" {part[1] or part[2]}/{part[3] or part[4]}", plain)
    return " ".join(_SPACES.sub(" ", plain).split())


def _value(found: re.Match[str]) -> Fraction:
    if found["whole"]:
        return int(found["whole"]) + Fraction(int(found["part"]), int(found["of"]))
    if found["over"]:
        return _read(found["over"]) / _read(found["under"])
    return _read(found["number"])


def _read(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
