"""Verifiers: a question and the text of an answer -> reward. All read the last \\boxed{...} of the answer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from axpo.registry import find
from rollout_workers.trajectory import Question

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_CHOICE = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:].*)?", re.DOTALL)


def boxed(text: str | None) -> str | None:
    """The content of the last \\boxed{...}, of nested ones the innermost; None where there is none."""
    opened: list[tuple[bool, int]] = []
    last = (-1, -1)
    for found in _BRACES.finditer(text or ""):
        if found[0].endswith("{") and not found[0].startswith("\\{"):
            opened.append((len(found[0]) > 1, found.end()))
        elif found[0] == "}" and opened:
            is_box, start = opened.pop()
            last = max(last, (start, found.start())) if is_box else last
    return (text or "")[slice(*last)].strip() if last[0] >= 0 else None


def exact_match(text: str | None, truth: str) -> float:
    """1.0 where the boxed answer equals the truth up to case and surrounding space, else 0.0."""
    return _exact(boxed(text), truth)


def number(text: str) -> Fraction | None:
    """The number that a text is: 1,250.5, -3e4, 1/3, \\frac{1}{3}, 12 %, $5; None where it is none, or too long to be meant."""
    plain = re.sub(r"\\[,;!%$]|[\s$%]", "", text.replace("\u2212", "-"))
    plain = _THOUSANDS.sub("", _FRACTION.sub(r"\1/\2", plain))
    if len(plain) > 40 or re.search(
        r"[eE][+-]?\d{4}", plain
    ):  # Fraction("1e999999999") is that many digits
        return None
    try:
        parts = [Fraction(part) for part in plain.split("/")]
        return parts[0] if len(parts) == 1 else parts[0] / parts[1] if len(parts) == 2 else None
    except (ValueError, ZeroDivisionError):
        return None


def choice(text: str) -> str | None:
    """The letter of a multiple-choice answer: B, (b), B. 12 cm, \\text{B}; None where there is not exactly one."""
    found = _CHOICE.fullmatch(
        re.sub(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}", r"\1", text).strip()
    )
    return found[1].upper() if found else None


@dataclass(frozen=True)
class Verifier:
    """A verifier by name, or one of yours as `package.module:function`, called with the question and the answer's text (or None).

    Small, so that it travels to the rollout workers without the task's rows.
    """

    name: str
    tolerance: float = 0.0  # of `numeric`

    def __call__(self, question: Question, answer: str | None) -> float:
        """Raises what the user's function raises, or ValueError where the question's own answer is not what the verifier needs."""
        if ":" in self.name:
            return find(self.name)(question, answer)
        return NAMED[self.name](boxed(answer), question.answer, self.tolerance)

    def check(self) -> None:
        """Raises ValueError where there is no such verifier, or what it needs is not installed."""
        if ":" in self.name:
            if not callable(find(self.name)):
                raise ValueError("is not callable")
        elif self.name not in NAMED:
            raise ValueError(f"expected {', '.join(NAMED)} or package.module:function")
        elif self.name == "math" and importlib.util.find_spec("math_verify") is None:
            raise ValueError("needs the package math-verify: pip install math-verify")

    def check_truth(self, truth: str) -> None:
        """Raises ValueError where an answer of the data cannot be compared with."""
        if self.name in ("numeric", "choice"):
            NAMED[self.name](None, truth, self.tolerance)


def _exact(answer: str | None, truth: str, tolerance: float = 0.0) -> float:
    return float(answer is not None and answer.casefold() == truth.strip().casefold())


def _numeric(answer: str | None, truth: str, tolerance: float) -> float:
    given, wanted = number(answer or ""), number(truth)
    if wanted is None:
        raise ValueError(f"expected a number, found {truth!r}")
    return float(
        given is not None
        and abs(given - wanted) <= Fraction(str(tolerance)) * max(Fraction(1), abs(wanted))
    )


def _choice(answer: str | None, truth: str, tolerance: float) -> float:
    wanted = choice(truth)
    if wanted is None:
        raise ValueError(f"expected the letter of a choice, found {truth!r}")
    return float(choice(answer or "") == wanted)


def _math(answer: str | None, truth: str, tolerance: float) -> float:
    from axpo.tasks.mathematics import equal

    return float(answer is not None and equal(truth, answer))


NAMED: dict[str, Callable[[str | None, str, float], float]] = {
    "exact": _exact,
    "numeric": _numeric,
    "choice": _choice,
    "math": _math,
}
"""The content of the last box (None: there is none), the question's answer, the tolerance -> reward."""
