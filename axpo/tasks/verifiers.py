"""Verify answers: from a question and the text of an answer to a reward.

Every verifier here reads the last `\\boxed{...}` of the answer. A recipe names one (`verifier:
numeric`), with options if it has any (`verifier: {name: numeric, tolerance: 0.05}`), or gives the
import path of a function `(question, answer)` of its own.
"""

from __future__ import annotations

import importlib.util
import re
from abc import abstractmethod
from fractions import Fraction

from pydantic import Field, model_validator

from axpo.registry import Registry, Variant
from rollout_workers.trajectory import Question

# \boxed{, any escaped character, or a bare brace
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_SPACE_AND_UNITS = re.compile(r"\\[,;!%$]|[\s$%]")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_CHOICE = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:].*)?", re.DOTALL)
# Fraction("1e999999999") would write out that many digits.
_HUGE_EXPONENT = re.compile(r"[eE][+-]?\d{4}")
_LONGEST_NUMBER = 40  # characters; a longer text is no number that somebody meant


class Verifier(Variant):
    """Give the reward of an answer.

    A verifier is small, so that it travels to the rollout workers without the task's rows.
    """

    @abstractmethod
    def reward(self, question: Question, answer: str | None) -> float:
        """Return the reward of an answer; above 0 is right.

        Args:
            question: the question, with its true answer.
            answer: what follows the thinking of the last turn; None if there is no answer.

        Raises:
            ValueError: the question's own answer is not what this verifier needs.
        """

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if no answer can be compared with this true answer of the data."""
        return


verifiers: Registry[Verifier] = Registry("verifiers", Verifier, "reward")


@verifiers.register("exact")
class Exact(Verifier):
    """The box has the same text as the truth, up to case and surrounding space."""

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box has the text of the truth, else 0.0."""
        return exact_match(answer, question.answer)


@verifiers.register("numeric")
class Numeric(Verifier):
    """The box has a number that is close enough to the truth."""

    tolerance: float = Field(
        0.0,
        ge=0,
        description="largest difference from the truth t, in units of max(1, |t|)",
    )

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box has a number within the tolerance, else 0.0."""
        truth = _true_number(question.answer)
        given = number(boxed(answer) or "")
        if given is None:
            return 0.0
        # Fractions are exact: 4.95 is within 0.1 of 4.5 (0.1 * 4.5 = 0.45), whatever floats say.
        # About zero the tolerance is absolute.
        unit = max(Fraction(1), abs(truth))
        allowed = Fraction(str(self.tolerance)) * unit
        return float(abs(given - truth) <= allowed)

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if the truth is no number."""
        _true_number(truth)


@verifiers.register("choice")
class Choice(Verifier):
    """The box names the same letter as the truth: B, (b), B. 12 cm."""

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box names the letter of the truth, else 0.0."""
        truth = _true_choice(question.answer)
        return float(choice(boxed(answer) or "") == truth)

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if the truth names no letter."""
        _true_choice(truth)


@verifiers.register("math")
class Math(Verifier):
    """The box is mathematically equal to the truth (math-verify, ended after 10 s)."""

    @model_validator(mode="after")
    def _installed(self) -> Math:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "verifier 'math' needs the package math-verify: pip install math-verify"
            )
        return self

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box equals the truth, else 0.0.

        Raises:
            TimeoutError: the comparison took too long.
            RuntimeError: the comparing process ended, or the truth is no expression.
        """
        # Imported here because the comparing process runs that very module: Python warns if the
        # package has imported it before.
        from axpo.tasks.mathematics import equal

        given = boxed(answer)
        return float(given is not None and equal(question.answer, given))


def exact_match(text: str | None, truth: str) -> float:
    """Return 1.0 if the box has the text of the truth, up to case and outer space, else 0.0."""
    given = boxed(text)
    if given is None:
        return 0.0
    return float(given.casefold() == truth.strip().casefold())


def boxed(text: str | None) -> str | None:
    """Return the content of the last \\boxed{...}, of nested ones the innermost, or None."""
    text = text or ""
    # For each brace that is still open: is it a box's, and where does its content start? One pass
    # over the text: a policy may write thousands of boxes and close none.
    open_braces: list[tuple[bool, int]] = []
    start, end = -1, -1
    for token in _BRACES.finditer(text):
        if token[0] == "{" or token[0].startswith("\\boxed"):
            open_braces.append((token[0] != "{", token.end()))
        elif token[0] == "}" and open_braces:
            is_box, content_start = open_braces.pop()
            if is_box and content_start > start:
                start, end = content_start, token.start()
    return text[start:end].strip() if start >= 0 else None


def number(text: str) -> Fraction | None:
    """Return the number that a text is, or None if it is none or too long to be meant.

    Read are: 1,250.5, -3e4, 1/3, \\frac{1}{3}, 12 %, $5.
    """
    plain = text.replace("\u2212", "-")  # the minus sign of typeset text
    plain = _SPACE_AND_UNITS.sub("", plain)
    plain = _FRACTION.sub(r"\1/\2", plain)
    plain = _THOUSANDS.sub("", plain)
    if len(plain) > _LONGEST_NUMBER or _HUGE_EXPONENT.search(plain):
        return None
    try:
        parts = [Fraction(part) for part in plain.split("/")]
        if len(parts) == 1:
            return parts[0]
        # 1/2/3 could be read in two ways.
        return parts[0] / parts[1] if len(parts) == 2 else None
    except (ValueError, ZeroDivisionError):
        return None


def choice(text: str) -> str | None:
    """Return the letter of a multiple-choice answer, or None if there is not exactly one.

    Read are: B, (b), B. 12 cm, \\text{B}.
    """
    found = _CHOICE.fullmatch(_TEXT_COMMAND.sub(r"\1", text).strip())
    return found[1].upper() if found else None


def _true_number(truth: str) -> Fraction:
    value = number(truth)
    if value is None:
        raise ValueError(f"expected a number, found {truth!r}")
    return value


def _true_choice(truth: str) -> str:
    letter = choice(truth)
    if letter is None:
        raise ValueError(f"expected the letter of a choice, found {truth!r}")
    return letter
