r"""Read numbers, with or without a unit, from what people and models write.

Reading is strict: what can be meant in two ways is no number. `3 4`, `1/2/3`, `3x` and `5k` are
none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 60
"""Characters. A longer text is no number that somebody meant."""

# Characters of typeset text, and what a keyboard has for them.
_DASHES = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-")
# A command ends with a space: a letter may follow.
_OTHERS = {
    "\u00a0": " ",
    "\u3000": " ",
    "~": " ",
    "\u2044": "/",
    "\u00d7": "\\times ",
    "\u00b7": "\\cdot ",
    "\u22c5": "\\cdot ",
    "\u00ba": "\u00b0",
    "\u2103": "\u00b0C",
    "\u2109": "\u00b0F",
    "\u00b5": "\u03bc",
    "\u2126": "\u03a9",
    "\u2032": "'",
    "\u2033": '"',
}
# Those of full width, as Chinese texts have them.
_WIDE = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
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
_TYPESET = str.maketrans(_WIDE | _DASHES | _OTHERS | _FRACTIONS)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b]+")
_RAISED_DIGITS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-"
)

# 1{,}250 and 1\,250 in LaTeX, and a thin space in typeset text
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;:!]|[\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|mbox|rm)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree")
_IGNORED = re.compile(r"\\?[$%]|\\[()\[\]]|\\(?:left|right|displaystyle)(?![a-z])")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|\s")
# \frac{1}{2} and \frac12
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]+)\}|([0-9]))\s*(?:\{([^{}]+)\}|([0-9]))")
_EXPONENT = r"10\s*\^\s*(?:\{\s*([+-]?[0-9]{1,3})\s*\}|(-?[0-9]))(?![0-9])"
_POWER_OF_TEN = re.compile(rf"(?<=[0-9.])\s*(?:\\times|\\cdot|[*x])\s*{_EXPONENT}")
_BARE_POWER = re.compile(rf"^(\W*){_EXPONENT}")
_GREEK = {"mu": "\u03bc", "Omega": "\u03a9"}
_GREEK_UNIT = re.compile(rf"\\({'|'.join(_GREEK)})(?![A-Za-z])")
_CURRENCY_FIRST = re.compile(r"^([+-]?) ?([\u20ac\u00a3\u00a5]) ?([+-]?) ?(.*)$")

_NUMBER = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]{1,3})?"
)
_QUANTITY = re.compile(
    r"(?P<sign>[+-]?) *"
    rf"(?:(?P<whole>[0-9]+) +(?P<part>[0-9]+) */ *(?P<of>[0-9]+)|"
    rf"(?P<over>{_NUMBER}) */ *(?P<under>-?{_NUMBER})|(?P<number>{_NUMBER}))"
    # A unit begins with a letter or a sign of its own and holds digits as exponents only.
    r" *(?P<unit>(?:[^\W\d_]|[\u00b0'\"\u20ac\u00a3\u00a5])"
    r"(?:[^\d+=<>,;&|]|(?<=\^)-?\d|(?<=\^\{)-?\d)*)?"
)
# Behind a number these are a factor, or may be one: `5\u03c0` and `3x` are not 5 and 3 of a unit.
_NO_UNIT = re.compile(r"\u03c0|(?:pi|[eikxyzBM]|bn|mn|mln)(?![^\W\d_])|.*\b(?:or|and|to|not)\b")
_MAGNITUDE = re.compile(r"(hundred|thousand|million|billion|trillion)s?\b\s*")
_MAGNITUDES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# Words and signs for one unit are the same. Those of per cent and dollars are left out.
_UNIT_WORDS = {
    **{"meter": "m", "metre": "m", "inch": "in", "foot": "ft", "feet": "ft", "yard": "yd"},
    **{"mile": "mi", "gram": "g", "liter": "L", "litre": "L", "l": "L", "ml": "mL"},
    **{"sec": "s", "second": "s", "min": "min", "minute": "min", "hr": "h", "hour": "h"},
    **{"deg": "\u00b0", "degree": "\u00b0", "celsius": "C", "fahrenheit": "F"},
    **{"percent": "", "dollar": "", "euro": "\u20ac"},
}
_PREFIXES = {"kilo": "k", "centi": "c", "milli": "m"}
_WORD = re.compile(r"[^\W\d_]+")
_RAISED_UNIT = re.compile(r"\b(square|sq\.?|cubic|cu\.?) +([^\s/]+)")
# `cm2`, as many write it
_PLAIN_EXPONENT = re.compile(r"(?<![^\W\d_])([mcdk]?m|in|ft|yd|mi)([23])(?![\w^])")
_UNIT_SPELLING = re.compile(r"[\s{}\\]")


@dataclass(frozen=True)
class Quantity:
    """A number, and the unit behind it; empty if there is none."""

    value: Fraction
    unit: str


def quantity(text: str) -> Quantity | None:
    """Return the number and the unit that a text is, or None if it is not one of each.

    Read are: 1,250.5, 1{,}250, -3e4, 3 \\times 10^4, 10^4, 1/3, \\frac{1}{3}, 1 1/2,
    1\\frac{1}{2}, 3 million, 12 %, $5, 12 cm, 5\\text{ m/s}^2. Per cent and dollars are left out.
    """
    if len(text) > 4 * LONGEST:
        return None
    plain = _plain(text)
    found = _QUANTITY.fullmatch(plain)
    if found is None or len(plain) > LONGEST:
        return None
    magnitude = _MAGNITUDE.match(found["unit"] or "")
    written = (found["unit"] or "")[magnitude.end() if magnitude else 0 :]
    if _NO_UNIT.match(written):
        return None
    try:
        value = _value(found) * (_MAGNITUDES[magnitude[1]] if magnitude else 1)
    except ZeroDivisionError:
        return None
    return Quantity(-value if found["sign"] == "-" else value, _unit(written))


def number(text: str) -> Fraction | None:
    """Return the number that a text is, or None if it is none, or has a unit."""
    found = quantity(text)
    return found.value if found is not None and not found.unit else None


def typeset(text: str) -> str:
    """Return a text with the signs that a keyboard has for those of a typesetter."""
    raised = _RAISED.sub(lambda found: f"^{{{found[0].translate(_RAISED_DIGITS)}}}", text)
    return raised.translate(_TYPESET)


def _plain(text: str) -> str:
    """Return a text with one spelling for each thing, so that one pattern reads it."""
    plain = _THOUSANDS.sub(",", typeset(text))
    plain = _IGNORED.sub("", plain)
    plain = _POWER_OF_TEN.sub(_as_exponent, plain)
    plain = _BARE_POWER.sub(lambda power: f"{power[1]}1e{power[2] or power[3]}", plain)
    plain = _DEGREES.sub("\u00b0", _TEXT.sub(r" \1", plain))
    plain = _GREEK_UNIT.sub(lambda letter: _GREEK[letter[1]], plain)
    plain = _PLAIN_EXPONENT.sub(r"\1^\2", plain)
    # The space keeps the whole part of `1\frac{1}{2}` apart.
    plain = _FRACTION.sub(lambda part: f" {part[1] or part[2]}/{part[3] or part[4]}", plain)
    plain = " ".join(_SPACES.sub(" ", plain).split())
    return _CURRENCY_FIRST.sub(r"\1\3\4 \2", plain)


def _unit(written: str) -> str:
    """Return a unit in its one spelling: `cm^2` of `square centimeters`."""
    unit = re.sub(r"\bper cents?\b", "", written)
    unit = _WORD.sub(lambda word: _sign_of(word[0]), unit)
    unit = re.sub(r" +per +", "/", unit)
    unit = _RAISED_UNIT.sub(
        lambda raised: f"{raised[2]}^{'2' if raised[1][0] == 's' else '3'}", unit
    )
    return _UNIT_SPELLING.sub("", unit).rstrip(".")


def _sign_of(word: str) -> str:
    """Return the sign of a unit's word, in the singular or plural; another word as it is."""
    plain = word.casefold()
    for one in (plain, plain.removesuffix("s"), plain.removesuffix("es")):
        if one in _UNIT_WORDS:
            return _UNIT_WORDS[one]
        prefix = next((prefix for prefix in _PREFIXES if one.startswith(prefix)), "")
        base = one.removeprefix(prefix)
        if prefix and base in ("meter", "metre", "gram", "liter", "litre"):
            return _PREFIXES[prefix] + _UNIT_WORDS[base]
    return word


def _as_exponent(power: re.Match[str]) -> str:
    # `1/2e4` would be 1 / 20000, but 1/2 x 10^4 is 5000: that is not read.
    is_of_fraction = "/" in power.string[: power.start()]
    return power[0] if is_of_fraction else f"e{power[1] or power[2]}"


def _value(found: re.Match[str]) -> Fraction:
    if found["whole"]:
        return int(found["whole"]) + Fraction(int(found["part"]), int(found["of"]))
    if found["over"]:
        return _read(found["over"]) / _read(found["under"])
    return _read(found["number"])


def _read(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
