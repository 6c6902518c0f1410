"""Verifiers: text of an answer -> reward."""

from __future__ import annotations

import re

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def boxed(text: str | None) -> str | None:
    """The content of the last \\boxed{...}; None where there is none."""
    found = _BOXED.findall(text or "")
    return found[-1].strip() if found else None


def exact_match(text: str | None, truth: str) -> float:
    """1.0 where the boxed answer equals the truth up to case and surrounding space, else 0.0."""
    answer = boxed(text)
    return float(answer is not None and answer.casefold() == truth.strip().casefold())
