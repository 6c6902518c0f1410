"""Verify answers: from a question and the text of an answer to a reward.

Every verifier here reads the last `\\boxed{...}` of the answer. A recipe names one (`verifier:
numeric`), with options if it has any (`verifier: {name: numeric, tolerance: 0.05}`), or gives the
import path of a function `(question, answer)` of its own.

An answer that cannot be read, or not within the limits, is wrong. The truth of a question may be a
list of accepted answers (`accepted`).
"""

from __future__ import annotations

import importlib.util
import json
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction

from pydantic import Field, model_validator

from axpo.registry import Registry, Variant
from axpo.tasks import choices, mathematics
from axpo.tasks.choices import choice
from axpo.tasks.quantities import Quantity, number, quantity
from rollout_workers.trajectory import Question

__all__ = ["Verifier", "accepted", "boxed", "choice", "exact_match", "number", "verifiers"]

# \boxed{, any escaped character, or a bare brace
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]+)\.0*")
_LIST_OF_TEXTS = re.compile(r"\[\s*\".*\"\s*\]", re.DOTALL)


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

    def check_settings(self) -> None:
        """Raise AxpoError if these settings cannot work here: no key, no package. Asks nobody."""
        return

    def check_service(self, timeout_s: float | None = None) -> None:
        """Raise AxpoError if a service that verifies does not answer.

        Called before a run starts.

        Args:
            timeout_s: give up after one attempt of so many seconds; None: be as patient as a run.
        """
        return

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if no answer can be compared with this true answer of the data."""
        return

    def check_question(self, question: Question) -> None:
        """Raise ValueError if no answer to this question could be right."""
        for truth in accepted(question.answer):
            self.check_truth(truth)


verifiers: Registry[Verifier] = Registry("verifiers", Verifier, "reward")


@verifiers.register("exact")
class Exact(Verifier):
    """The box has the same text as the truth, up to case and surrounding space."""

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box has the text of the truth, else 0.0."""
        return max(exact_match(answer, truth) for truth in accepted(question.answer))

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if no box can have this text, or hardly any."""
        if "\\boxed" in truth:
            raise ValueError(f"expected the answer alone, without \\boxed, found {truth!r}")
        whole = _WHOLE_FLOAT.fullmatch(truth.strip())
        if whole is not None:
            raise ValueError(
                f"found {truth!r}, which {whole[1]!r} would not match: write {whole[1]!r}, or use "
                "the verifier numeric"
            )
        if not truth.strip() or exact_match(f"\\boxed{{{truth}}}", truth) == 0.0:
            raise ValueError(f"expected a text that \\boxed{{}} can hold, found {truth!r}")


@verifiers.register("numeric")
class Numeric(Verifier):
    """The box has a number that is close enough to the truth, in the truth's unit or none."""

    tolerance: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="largest difference from the truth t, in units of max(1, |t|)",
    )
    absolute: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="largest difference from the truth; the larger one of both counts",
    )

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box has a number within the tolerance, else 0.0."""
        truths = [_true_quantity(truth) for truth in accepted(question.answer)]
        given = quantity(boxed(answer) or "")
        if given is None:
            return 0.0
        return float(any(self._matches(given, truth) for truth in truths))

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if the truth is no number."""
        _true_quantity(truth)

    def _matches(self, given: Quantity, truth: Quantity) -> bool:
        # Fractions are exact: 4.95 is within 0.1 of 4.5 (0.1 * 4.5 = 0.45), whatever floats say.
        # About zero the tolerance is absolute.
        relative = Fraction(str(self.tolerance)) * max(Fraction(1), abs(truth.value))
        allowed = max(relative, Fraction(str(self.absolute)))
        return given.unit in ("", truth.unit) and abs(given.value - truth.value) <= allowed


@verifiers.register("choice")
class Choice(Verifier):
    """The box names the same option as the truth, by letter or text: B, (b), B. 12 cm, 12 cm."""

    def reward(self, question: Question, answer: str | None) -> float:
        """Return 1.0 if the box names the option of the truth and no other, else 0.0."""
        listed = choices.options(question.text)
        given = boxed(answer) or ""
        named = choice(given, listed)
        for truth in accepted(question.answer):
            if named is not None and named == _true_choice(truth, question):
                return 1.0
            # Truths like `B. 12 cm` bring the option's text with them.
            text = choices.option_text(truth)
            if named is None and text and choices.same_text(given, text):
                return 1.0
        return 0.0

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if the truth names no letter."""
        _true_choice(truth)

    def check_question(self, question: Question) -> None:
        """Raise ValueError if a truth names no letter and is no option of the question."""
        for truth in accepted(question.answer):
            _true_choice(truth, question)


@verifiers.register("math")
class Math(Verifier):
    """The box is mathematically equal to the truth (math-verify, under limits of time and size)."""

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
            TimeoutError: the machine was too busy to compare.
            RuntimeError: the machine ended the comparison, or the truth is no expression.
        """
        given = boxed(answer)
        if given is None:
            return 0.0
        truths = accepted(question.answer)
        # Plain numbers need no algebra. This reads `1 1/2`, which math-verify does not.
        of_given = number(given)
        if of_given is not None and of_given in [number(truth) for truth in truths]:
            return 1.0
        truths = [truth for truth in truths if not _other_unit(truth, given)]
        return float(bool(truths) and mathematics.equal(truths, given))

    def check_truth(self, truth: str) -> None:
        """Raise ValueError if the truth is no expression, or cannot be compared in time."""
        if number(truth) is None:
            mathematics.check(truth)


def accepted(truth: str) -> Sequence[str]:
    """Return the accepted answers of a question: those of a JSON list of texts, or the one text."""
    if _LIST_OF_TEXTS.fullmatch(truth):
        try:
            listed = json.loads(truth)
        except (ValueError, RecursionError):
            return [truth]
        if all(isinstance(text, str) for text in listed):
            return [text.strip() for text in listed]
    return [truth]


def exact_match(text: str | None, truth: str) -> float:
    """Return 1.0 if the box has the text of the truth, up to case and outer space, else 0.0."""
    given = boxed(text)
    if given is None:
        return 0.0
    return float(_folded(given) == _folded(truth))


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


def _folded(text: str) -> str:
    # One text may spell an accented letter as one character and another one as two.
    return unicodedata.normalize("NFC", text.strip().casefold())


def _other_unit(truth: str, given: str) -> bool:
    """Return whether both have units, and different ones; math-verify leaves units out."""
    expected, found = quantity(truth), quantity(given)
    if expected is None or found is None:
        return False
    return "" not in (expected.unit, found.unit) and expected.unit != found.unit


def _true_quantity(truth: str) -> Quantity:
    value = quantity(truth)
    if value is None:
        raise ValueError(f"expected a number, found {truth[:80]!r}")
    return value


def _true_choice(truth: str, question: Question | None = None) -> str:
    letter = choice(truth, choices.options(question.text) if question else None)
    if letter is None:
        raise ValueError(
            f"expected the letter of a choice, or the text of one that the question lists, found "
            f"{truth[:80]!r}"
        )
    return letter
