"""Compare formulas: as texts, by math-verify, and by their values."""

from __future__ import annotations

import functools
import re

from axpo.evaluation.answers import within
from axpo.evaluation.values import value
from axpo.tasks import mathematics

_SPACING = re.compile(r"\\left|\\right|\\[,;:! ]|\$|\s|\^\{?\\circ\}?|\\degree|°|degrees?")
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
    expected = value(truth)
    return expected is not None and agree_to_two_decimals(expected, value(given))


def agree_to_two_decimals(truth: float, given: float | None) -> bool:
    """Return whether two values round to the same hundredths, MathVision's own rule."""
    # What is a thousandth apart may round apart: 0.125 to 0.12, and 0.1251 to 0.13.
    return within(given, truth) or (given is not None and round(given, 2) == round(truth, 2))


def plain(formula: str) -> str:
    """Return a formula without spacing, dollars and degrees, for comparisons as texts."""
    return _SPACING.sub("", _FRACTION.sub(r"\\frac", formula)).rstrip(".").casefold()


@functools.lru_cache(maxsize=4096)
def _is_formula(truth: str) -> bool:
    """Return whether math-verify can read a truth; a word is none."""
    try:
        mathematics.check(truth)
    except ValueError:
        return False
    return True
