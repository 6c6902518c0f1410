"""Compare expressions by math-verify: the script behind `axpo.tasks.mathematics`.

It runs as a server of `axpo.limited`: each comparison is in a process of its own, under limits.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any

from axpo.limited.server import serve

# The first formula of a kind takes up to 0.3 s: sympy imports what it needs for it, and the parser
# learns. What the server knows, every child knows.
_WARM_UP = (
    ("\\frac{1}{2}", "0.5"),
    ("(x+1)^2", "x^2+2x+1"),
    ("\\sin^2(x)+\\cos^2(x)", "1"),
    ("\\frac{\\sqrt{3}+2}{5\\pi}", "\\frac{2+\\sqrt{3}}{5\\pi}"),
    ("(-\\infty, 3] \\cup [5, \\infty)", "x=3"),
    ("\\{1, 2\\}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("\\log_2(8)", "3e^{2x}"),
)


class Verdict(StrEnum):
    """What a comparison found."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNREADABLE = "unreadable"  # a truth is no expression


def compare(truths: list[str], answer: str | None) -> Verdict:
    """Return whether the answer equals one of the truths; all of them share one budget.

    Without an answer: whether each truth is a formula, and not a text that nothing reads.
    """
    from math_verify import verify

    expected = [_parsed(truth) for truth in truths]
    if not all(expected):
        return Verdict.UNREADABLE
    if answer is None:
        are_formulas = all(any(not isinstance(part, str) for part in one) for one in expected)
        return Verdict.EQUAL if are_formulas else Verdict.UNREADABLE
    given = _parsed(answer)
    for truth in expected:
        # No time limit of math-verify's own: it needs signals in a main thread.
        if verify(truth, given, timeout_seconds=None):
            return Verdict.EQUAL
    return Verdict.DIFFERENT


def _parsed(text: str) -> list[object]:
    from math_verify import parse

    parsed: list[object] = parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)
    return parsed


def _work(request: Any) -> str:
    truths, answer = request
    return compare(truths, answer)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # math-verify warns that it has no time limit
    for truth, answer in _WARM_UP:
        compare([truth], answer)
    serve(_work)
