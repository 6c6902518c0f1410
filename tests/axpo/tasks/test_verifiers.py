"""Verifiers on answers worked out by hand."""

from fractions import Fraction

import pytest

from axpo.tasks.verifiers import boxed, choice, number, verifiers
from rollout_workers.trajectory import Question


def verify(name, truth, answer, **options):
    verifier = verifiers.parse({"name": name, **options})
    return verifier.reward(Question("q", "?", (), truth, {"unit": "cm"}), answer)


def in_centimetres(question, answer):
    return answer == f"{question.answer} {question.info['unit']}"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}} and so on}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{1} or \\boxed{2", "1"),
        ("} \\boxed {3}", "3"),
        ("boxed{3}", None),
        ("\\boxed{" * 20_000, None),
    ],
)
def test_the_box_is_read_to_its_own_brace(text, content):
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250.5", Fraction(2501, 2)),
        ("\u22123e2", -300),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("1/8", Fraction(1, 8)),
        ("$ 12\\% $", 12),
        ("1,2", None),
        ("1/0", None),
        ("1/2/3", None),
        ("1e999999999", None),
        ("nan", None),
        ("inf", None),
        ("twelve", None),
        ("", None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "B"),
        ("(C)", "C"),
        ("D. 12 cm", "D"),
        ("\\text{A}", "A"),
        ("A or B", None),
        ("Ab", None),
        ("", None),
        ("42", None),
    ],
)
def test_choices(text, letter):
    assert choice(text) == letter


def test_each_name_does_what_it_says():
    assert verify("exact", "Paris", "It is \\boxed{paris}.") == 1
    assert verify("exact", "Paris", "paris") == 0
    assert verify("numeric", "200", "\\boxed{201}", tolerance=0.005) == 1  # 0.005 * 200 = 1
    assert verify("numeric", "200", "\\boxed{201.1}", tolerance=0.005) == 0
    assert (
        verify("numeric", "0", "\\boxed{0.004}", tolerance=0.005) == 1
    )  # about zero the tolerance is absolute
    assert verify("choice", "B", "\\boxed{(b)}") == 1
    assert verify("choice", "B", "\\boxed{A}") == 0
    assert [verify(name, "1", None) for name in ("exact", "numeric")] == [0, 0]
    assert verify(f"{__name__}:in_centimetres", "3", "3 cm") == 1


def test_data_that_cannot_be_compared_with_raises():
    with pytest.raises(ValueError, match="expected a number, found 'many'"):
        verify("numeric", "many", "\\boxed{1}")
    with pytest.raises(ValueError, match="expected the letter of a choice"):
        verify("choice", "12", "\\boxed{A}")


def test_math():
    pytest.importorskip("math_verify")
    assert verify("math", "\\frac{1}{2}", "\\boxed{0.5}") == 1
    assert verify("math", "$x^2 + 2x + 1$", "\\boxed{(x+1)^2}") == 1
    assert verify("math", "\\frac{1}{2}", "\\boxed{0.51}") == 0
    assert verify("math", "\\frac{1}{2}", "0.5") == 0
