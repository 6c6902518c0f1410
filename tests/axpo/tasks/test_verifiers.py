"""Verifiers on answers worked out by hand."""

import json
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
        ("1{,}250", 1250),
        ("1\\,250", 1250),
        ("1\u202f250", 1250),
        ("1,25", None),
        ("1234,567", None),
        ("3 4", None),
        ("1 250", None),
        ("1\\frac{1}{2}", Fraction(3, 2)),
        ("-1 \\tfrac{1}{2}", Fraction(-3, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("1\u00bd", Fraction(3, 2)),
        ("\u00be", Fraction(3, 4)),
        ("1 -1/2", None),
        ("\\frac{1}{2}\\frac{1}{3}", None),
        ("\\frac12", Fraction(1, 2)),
        ("\\frac{-1}{2}", Fraction(-1, 2)),
        ("1 / 8", Fraction(1, 8)),
        ("\u20133", -3),
        ("\u2014.5", Fraction(-1, 2)),
        ("3\u20135", None),
        ("3 \\times 10^{-2}", Fraction(3, 100)),
        ("3\u00d710^4", 30_000),
        ("12 cm", None),
        ("7 or 8", None),
        ("1_000", None),
        ("1.2.3", None),
        ("9" * 61, None),
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
        ("(A) or (B)", None),
        ("(A), (B)", None),
        ("A)B)C)D)", None),
        ("C. D.", None),
        ("a) b)", None),
        ("(a)(b)", None),
        ("A. or C", None),
        ("A. 12 cm B. 13 cm", None),
        ("B. B", "B"),
        ("(B): a cat", "B"),
        ("**B**", "B"),
        ("$\\mathrm{B}$", "B"),
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


def test_a_unit_may_be_left_out_but_not_exchanged():
    for answer in ("12", "12 cm", "12\\text{ cm}", "12\\,\\mathrm{cm}", "12.0 cm."):
        assert verify("numeric", "12 cm", f"\\boxed{{{answer}}}") == 1, answer
    for answer in ("12 m", "12 cm^2", "13 cm", "cm", "12 cm or 13 cm"):
        assert verify("numeric", "12 cm", f"\\boxed{{{answer}}}") == 0, answer
    assert verify("numeric", "12", "\\boxed{12 cm}") == 0  # of what, the truth does not say
    assert verify("numeric", "5 m/s^2", "\\boxed{5\\ \\text{m}/\\text{s}^{2}}") == 1
    assert verify("numeric", "90^\\circ", "\\boxed{90\u00b0}") == 1


def test_a_tolerance_may_be_absolute():
    assert verify("numeric", "200", "\\boxed{200.5}", absolute=0.5) == 1
    assert verify("numeric", "200", "\\boxed{200.6}", absolute=0.5) == 0
    # The larger one of both: 0.005 * 200 = 1.
    assert verify("numeric", "200", "\\boxed{201}", absolute=0.5, tolerance=0.005) == 1


@pytest.mark.parametrize(
    ("name", "truth", "right", "wrong"),
    [
        ("exact", ["Paris", "paname"], "PANAME", "Rome"),
        ("numeric", ["7", "1/3"], "\\frac{1}{3}", "8"),
        ("choice", ["B", "C. a cat"], "(c)", "A"),
    ],
)
def test_several_answers_may_be_accepted(name, truth, right, wrong):
    truth = json.dumps(truth)
    assert verify(name, truth, f"\\boxed{{{right}}}") == 1
    assert verify(name, truth, f"\\boxed{{{wrong}}}") == 0


def chosen(truth, answer, text):
    return verifiers.parse("choice").reward(Question("q", text, (), truth), f"\\boxed{{{answer}}}")


@pytest.mark.parametrize(
    "text",
    ["Which?\nA. 12 cm\nB. point A\nC. a cat\nOne letter.", "(A) 12 cm (B) point A (C) a cat"],
)
def test_an_option_may_be_named_by_its_text(text):
    for answer in ("B", "point A", "Point A.", "B. point A", "\\text{(B) point A}"):
        assert chosen("B", answer, text) == 1, answer
        assert chosen("point A", answer, text) == 1, answer
    # The letter of one option with the text of another names two.
    for answer in ("A. point A", "C. point A", "A", "a cat", "point", "point B", "B. C"):
        assert chosen("B", answer, text) == 0, answer


def test_the_text_of_the_truth_names_its_option():
    assert chosen("B. 12 cm", "12 cm", "Which?") == 1
    assert chosen("B. 12 cm", "13 cm", "Which?") == 0
    assert chosen("B", "", "Which?") == 0


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("exact", "\\boxed{7}"),
        ("exact", "7.0"),
        ("exact", " "),
        ("exact", "a } b"),
        ("numeric", "many"),
        ("numeric", "\\boxed{7}"),
        ("numeric", "3 4"),
        ("choice", "(A) or (B)"),
        ("choice", "12"),
    ],
)
def test_a_truth_that_no_answer_can_match_is_told(name, truth):
    with pytest.raises(ValueError, match=r"expected|would not match"):
        verifiers.parse(name).check_truth(truth)


def test_a_truth_is_checked_with_its_question():
    choice_verifier = verifiers.parse("choice")
    choice_verifier.check_question(Question("q", "A. a cat\nB. a dog", (), "a dog"))
    with pytest.raises(ValueError, match="found 'a cow'"):
        choice_verifier.check_question(Question("q", "A. a cat\nB. a dog", (), "a cow"))
    with pytest.raises(ValueError, match="found 'many'"):
        verifiers.parse("numeric").check_question(Question("q", "?", (), '["7", "many"]'))


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
    assert verify("math", "\\frac{3}{2}", "\\boxed{1 1/2}") == 1
    assert verify("math", "1\\frac{1}{2}", "\\boxed{1.5}") == 1
    assert verify("math", "x+1", "\\boxed{9^{9^{9^9}}}") == 0
    assert verify("math", "x+1", "\\boxed{" + "(" * 500 + "}") == 0
    assert verify("math", "7", "\\boxed{3 4}") == 0  # no mixed number
    assert verify("math", "x-1", "\\boxed{x\u20131}") == 1
    assert verify("math", "12\\text{ cm}", "\\boxed{12}") == 1
    assert verify("math", "12\\text{ cm}", "\\boxed{12\\text{ m}}") == 0
    assert verify("math", '["x", "x+1"]', "\\boxed{1+x}") == 1
