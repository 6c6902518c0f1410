"""Compute the value of a short expression as a policy writes it: `2\\sqrt{3}`, `3\\pi/4`, `-1.5`.

Only numbers, + - * / ^, roots, fractions, pi and brackets, in floats: nothing that a policy writes
can keep this busy. All else is the business of math-verify.
"""

from __future__ import annotations

import math
import re

LONGEST = 120
"""Characters of an expression."""

DEEPEST = 20
"""Brackets inside each other."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?|\.\d+)|(?P<name>\\[dt]?frac|\\sqrt|\\pi|π|pi)"
    r"|(?P<sign>[-+*/^(){}\[\]]))"
)
_NOISE = re.compile(r"\\left|\\right|\\[,;:! ]|\$|\\degree|\^\{?\\circ\}?|°")
_UNIT = re.compile(
    r"(?:\\(?:text|mathrm)\{\s*[^{}]*\}|(?<=[\d\s)}])\s*[A-Za-z][A-Za-z/]*)\s*[²³]?$"
)
_ABOUT = re.compile(r"\\approx|\\simeq|≈")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def value(text: str) -> float | None:
    """Return the value of an expression, or None if it is none.

    What stands before the last `=` is left out, a unit behind the number too.
    """
    text = _ABOUT.sub("=", text.replace("\u2212", "-")).rpartition("=")[2]
    text = text.replace("√", "\\sqrt")
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("×", "*")
    text = _THOUSANDS.sub("", _NOISE.sub("", text)).strip()
    if not text.endswith("pi"):
        text = _UNIT.sub("", text).strip().rstrip(".")
    if not text or len(text) > LONGEST:
        return None
    try:
        found = _Reader(text).all()
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return found if math.isfinite(found) else None


class _Reader:
    """Read an expression from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None:
                raise ValueError(text)
            self._tokens.append(token[0].strip())
            position = token.end()
        self._depth = 0

    def all(self) -> float:
        found = self._sum()
        if self._tokens:
            raise ValueError(self._tokens[0])
        return found

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, expected: str = "") -> str:
        token = self._next()
        if not token or (expected and token != expected):
            raise ValueError(token)
        return self._tokens.pop(0)

    def _sum(self) -> float:
        found = self._product()
        while self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            found += sign * self._product()
        return found

    def _product(self) -> float:
        found = self._power()
        while self._next() not in ("", "+", "-", ")", "}", "]"):
            if self._next() == "/":
                self._take()
                found /= self._power()
            else:
                # Without a sign between them, 2\pi and 2(3) are products too; two numbers are not.
                if self._next() == "*":
                    self._take()
                elif self._next()[0].isdigit():
                    raise ValueError(self._next())
                found *= self._power()
        return found

    def _power(self) -> float:
        if self._next() in ("+", "-"):
            return (1 if self._take() == "+" else -1) * self._power()
        base = self._atom()
        if self._next() != "^":
            return base
        self._take()
        raised = base ** self._power()
        if isinstance(raised, complex):
            raise ValueError("a complex number")
        return float(raised)

    def _atom(self) -> float:
        token = self._take()
        if token in ("(", "{", "["):
            return self._bracket({"(": ")", "{": "}", "[": "]"}[token])
        if token.endswith("frac"):
            above = self._atom()
            return above / self._atom()
        if token == "\\sqrt":
            degree = self._bracket_of_root()
            return math.pow(self._atom(), 1 / degree)
        if token in ("\\pi", "π", "pi"):
            return math.pi
        return float(token)

    def _bracket_of_root(self) -> float:
        if self._next() != "[":
            return 2.0
        self._take()
        return self._bracket("]")

    def _bracket(self, closing: str) -> float:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError("too deep")
        found = self._sum()
        self._take(closing)
        self._depth -= 1
        return found
