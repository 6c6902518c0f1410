"""Compare formulas: as texts, by math-verify, and by their values."""

from __future__ import annotations

import functools
import re

from axpo.evaluation.answers import within
from axpo.evaluation.values import value
from axpo.tasks import mathematics

_SPACING = re.compile(r"\\left|\\right|\\[,;:! ]|\$|\s|\^\{?\\circ\}?|\\degree|°|degrees?")
_SIZES = re.compile(r"\\left|\\right")
_OPENING, _CLOSING = "([{", ")]}"
_FRACTION = re.compile(r"\\[dt]frac")


def equal(truth: str, given: str) -> bool:
    """Return whether two formulas have one text, are equal, or agree to two decimals.

    Raises:
        TimeoutError: the machine was too busy to compare them.
        RuntimeError: the machine ended the comparison.
    """
    if plain(truth) == plain(given):
        return True
    if _is_formula(truth) and mathematics.equal(truth, given):
        return True
    brackets, elements = _elements(truth)
    if elements:
        found = _elements(given)
        same_form = found[0] == brackets and len(found[1]) == len(elements)
        return same_form and all(map(equal, elements, found[1]))
    expected = value(truth)
    return expected is not None and agree_to_two_decimals(expected, value(given))


def agree_to_two_decimals(truth: float, given: float | None) -> bool:
    """Return whether two values round to the same hundredths, MathVision's own rule."""
    # What is a thousandth apart may round apart: 0.125 to 0.12, and 0.1251 to 0.13.
    return within(given, truth) or (given is not None and round(given, 2) == round(truth, 2))


def plain(formula: str) -> str:
    """Return a formula without spacing, dollars and degrees, for comparisons as texts."""
    return _SPACING.sub("", _FRACTION.sub(r"\\frac", formula)).rstrip(".").casefold()


def parts(text: str) -> list[str]:
    """Return the answers in a text: what commas and semicolons outside of brackets divide."""
    pieces, depth = [""], 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        # Not the comma of 1,000, and not the thin space \, of TeX.
        is_number = re.fullmatch(r"\d,\d{3}(?!\d)", text[max(index - 1, 0) : index + 4]) is not None
        escaped = index > 0 and text[index - 1] == "\\"
        if depth == 0 and character in ",;，；" and not is_number and not escaped:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def _elements(formula: str) -> tuple[str, list[str]]:
    """Return the brackets and the elements of a point, an interval or a list; else no elements."""
    inner = _SIZES.sub("", formula).strip().strip("$").strip()
    pieces = parts(inner)
    if len(pieces) > 1:
        return "", pieces
    if inner[:1] in ("(", "[") and inner[-1:] in (")", "]"):
        pieces = parts(inner[1:-1])
        if len(pieces) > 1:
            return inner[0] + inner[-1], pieces
    return "", []


@functools.lru_cache(maxsize=4096)
def _is_formula(truth: str) -> bool:
    """Return whether math-verify can read a truth; a word is none."""
    try:
        mathematics.check(truth)
    except ValueError:
        return False
    return True
