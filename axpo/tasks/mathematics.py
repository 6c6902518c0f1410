"""Compare mathematical expressions, by math-verify in processes of their own.

What a policy wrote can keep sympy busy for ever, or Python itself: `9^{9^{9^9}}` is one
multiplication that no thread can interrupt. So each comparison runs in a process of its own, under
limits (`axpo.limited`). An answer that exceeds them is wrong. Other answers do not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from axpo.limited.client import Limited, OverLimits
from axpo.tasks import comparing
from axpo.tasks.comparing import Verdict
from axpo.tasks.quantities import typeset

LONGEST = 2000
"""Characters of an expression."""

DEEPEST = 40
"""Brackets inside each other."""

_BRACKETS = re.compile(r"[(\[{]|([)\]}])")
# math-verify reads `3 4` as a mixed number, 3 + 4, in a list too. `3, 4` is two numbers.
_NUMBERS = re.compile(r"(?:^|[,;=$(\[{])\s*[+-]?[0-9.]+(?:\s+[0-9.]+)+\s*(?:$|[,;$)\]}\\])")
_comparer = Limited("math", comparing.__file__)


def equal(truth: str | Sequence[str], answer: str) -> bool:
    """Return whether the answer equals the truth, or one of several.

    An answer that is too long, too deep, or cannot be compared within the limits does not.

    Args:
        truth: LaTeX or plain text, without \\boxed.
        answer: likewise.

    Raises:
        TimeoutError: the comparing server is frozen.
        RuntimeError: the machine was too busy or ended the comparison, or a truth is no expression.
    """
    truths = [truth] if isinstance(truth, str) else list(truth)
    if not within_limits(answer) or _NUMBERS.search(answer):
        return False
    try:
        verdict = _comparer.ask([list(map(typeset, truths)), typeset(answer)])
    except OverLimits:
        return False
    if verdict == Verdict.UNREADABLE:
        found = ", ".join(truths)[:200]
        raise RuntimeError(f"math: {found}: no expression in the question's answer")
    return bool(verdict == Verdict.EQUAL)


def check(truth: str) -> None:
    """Raise ValueError if no answer can equal this truth.

    It must be an expression that can be read within the limits.
    """
    shown = truth[:80]
    if not truth.strip(" $"):
        raise ValueError("expected a formula, found none")
    if _NUMBERS.search(truth):
        raise ValueError(f"expected a formula, found numbers side by side: {shown!r}")
    if not within_limits(truth):
        raise ValueError(
            f"expected a formula of at most {LONGEST} characters and {DEEPEST} brackets inside "
            f"each other, found {shown!r}"
        )
    try:
        verdict = _comparer.ask([[typeset(truth)], None])
    except OverLimits:
        raise ValueError(f"no answer can match: {shown!r} takes too long to read") from None
    except (RuntimeError, TimeoutError):
        return  # the machine's fault says nothing about the truth
    if verdict != Verdict.EQUAL:
        raise ValueError(f"expected a formula, found {shown!r}; verifier exact compares texts")


def within_limits(text: str) -> bool:
    """Return whether an expression is short and flat enough to be compared."""
    if len(text) > LONGEST:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth = max(depth - 1, 0) if bracket[1] else depth + 1
        if depth > DEEPEST:
            return False
    return True
