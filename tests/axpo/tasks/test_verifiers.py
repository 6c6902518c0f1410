"""Verifiers on answers worked out by hand."""

import json
from fractions import Fraction

import pytest

from axpo.tasks.choices import options
from axpo.tasks.verifiers import accepted, boxed, choice, number, verifiers
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
        ("3\u00d710\u2074", 30_000),
        ("3 x 10^4", 30_000),
        ("2.5*10^{-3}", Fraction(1, 400)),
        ("3\u00b710^{4}", 30_000),
        ("10^4", 10_000),
        ("-10\u207b\u00b2", Fraction(-1, 100)),
        ("\\frac{3 \\times 10^4}{2}", 15_000),
        # 5000, and not 1 / 20000.
        ("1/2 \\times 10^4", None),
        ("2^10", None),
        ("10^{99999}", None),
        ("\uff11\uff12\uff0e\uff15", Fraction(25, 2)),
        ("3 million", 3_000_000),
        ("2.5\\text{ thousand dollars}", 2500),
        ("5 percent", 5),
        ("5k", None),
        ("5M", None),
        ("5\u03c0", None),
        ("5pi", None),
        ("3x", None),
        ("3i", None),
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
        ("B. 7", "B"),
        ("A. b, c", None),
        ("A. or d", None),
        ("a. and not b", None),
        ("\uff08\uff22\uff09", "B"),
        ("B\u3002", "B"),
        ("A\u3001B", None),
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


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("5 m/s^2", "5\\ \\text{m}/\\text{s}^{2}", True),
        ("90^\\circ", "90\u00b0", True),
        ("90^\\circ", "90 degrees", True),
        ("20 \u2103", "20^\\circ\\text{C}", True),
        ("20 \u2103", "20\u00b0F", False),
        ("\u20ac5", "5 \u20ac", True),
        ("\u20ac5", "\u00a35", False),
        ("5 \u00b5m", "5\\,\\mu\\text{m}", True),
        ("5 s^{-1}", "5 s\u207b\u00b9", True),
    ],
)
def test_a_unit_may_be_typeset(truth, answer, right):
    assert verify("numeric", truth, f"\\boxed{{{answer}}}") == right


@pytest.mark.parametrize(
    ("truth", "same", "other"),
    [
        ("12 cm", "12 centimeters", "12 meters"),
        ("12 cm^2", "12 square centimetres", "12 cubic centimetres"),
        ("12 cm\u00b2", "12 cm2", "12 cm3"),
        ("5 sq. ft", "5 ft^2", "5 ft"),
        ("3 m/s", "3 meters per second", "3 meters per minute"),
        ("2 hours", "2 h", "2 min"),
        ("6 inches", "6 in", "6 ft"),
        ("6 min", "6 mins", "6 s"),
        ("6 feet", "6 ft", "6 in"),
        ("250 ml", "250 milliliters", "250 litres"),
        ("2 kg", "2 kilograms", "2 g"),
        ("20 \u00b0C", "20 degrees Celsius", "20 degrees"),
        ("20 %", "20 per cent", "20 cm"),
        ("4 apples", "4 apples", "4 pears"),
        ("5 Mm", "5 Mm", "5 mm"),
    ],
)
def test_a_unit_may_be_spelled_as_a_word_or_as_a_sign(truth, same, other):
    assert verify("numeric", truth, f"\\boxed{{{same}}}") == 1
    assert verify("numeric", same, f"\\boxed{{{truth}}}") == 1
    assert verify("numeric", truth, f"\\boxed{{{other}}}") == 0


def test_a_magnitude_is_part_of_the_number():
    for answer in ("3,000,000", "3 million", "3 \\times 10^6", "3 million people"):
        assert verify("numeric", "3 million people", f"\\boxed{{{answer}}}") == 1, answer
    for answer in ("3", "3 people", "3 thousand", "3 million cats"):
        assert verify("numeric", "3 million people", f"\\boxed{{{answer}}}") == 0, answer


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


@pytest.mark.parametrize(
    "text",
    [
        "Which?\nA. a cat\nB. a dog\nAnswer with A. or B. only",
        "(A) a cat (B) a dog\nAnswer with (A) or (B).",
        "Choices: A. a cat, B. a dog",
        "**A.** a cat\n**B.** a dog",
        "- A. a cat\n- B. a dog",
        "A.a cat\nB.a dog",
        "(A)a cat (B)a dog",
        "(a) a cat (b) a dog",
        "\uff21\u3001a cat\n\uff22\u3001a dog",
        "Is vitamin A. or B. shown? A: a cat B: a dog",
    ],
)
def test_options_are_found_however_they_are_listed(text):
    assert options(text) == {"A": "a cat", "B": "a dog"}
    assert chosen("B", "a dog", text) == 1
    assert chosen("B", "b", text) == 1
    assert chosen("B", "a cat", text) == 0


def test_letters_in_a_sentence_are_no_options():
    for text in ("Is vitamin A. or B. good?", "A. B. C. D.", "P(A)=1 and P(B)=2", "A. only"):
        assert options(text) == {}


def test_one_text_may_be_spelled_with_other_characters():
    assert verify("exact", "caf\u00e9", "\\boxed{cafe\u0301}") == 1
    assert verify("exact", "cafe", "\\boxed{cafe\u0301}") == 0


def test_a_list_of_answers_is_json_and_all_else_is_a_text():
    assert accepted('[ "7",\n "seven" ]') == ["7", "seven"]
    deep = '["7", ' + "[" * 100_000 + "]" * 100_000 + ', "8"]'
    for text in ('["7", 8]', '["7"', "[7]", "['7']", deep):
        assert accepted(text) == [text]


def test_the_text_of_the_truth_names_its_option():
    assert chosen("B. 12 cm", "12 cm", "Which?") == 1
    assert chosen("B. 12 cm", "13 cm", "Which?") == 0
    assert chosen("B", "", "Which?") == 0


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("exact", "\\boxed{7}"),
        ("exact", "7.0"),
        ("exact", "-7.00"),
        ("exact", " "),
        ("exact", "a } b"),
        ("numeric", "many"),
        ("numeric", "\\boxed{7}"),
        ("numeric", "3 4"),
        ("numeric", "5\u03c0 cm"),
        ("numeric", "2x+1"),
        ("numeric", "12 cm or more"),
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


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("\\frac{1}{2}", "\\boxed{0.5}", True),
        ("$x^2 + 2x + 1$", "\\boxed{(x+1)^2}", True),
        ("\\frac{1}{2}", "\\boxed{0.51}", False),
        ("\\frac{1}{2}", "0.5", False),  # no box
        ("\\frac{3}{2}", "\\boxed{1 1/2}", True),
        ("1\\frac{1}{2}", "\\boxed{1.5}", True),
        ("x+1", "\\boxed{9^{9^{9^9}}}", False),
        ("x+1", "\\boxed{" + "(" * 500 + "}", False),
        ("7", "\\boxed{3 4}", False),  # no mixed number
        ("x-1", "\\boxed{x\u20131}", True),
        ("12\\text{ cm}", "\\boxed{12}", True),
        ("12\\text{ cm}", "\\boxed{12\\text{ m}}", False),
        ('["x", "x+1"]', "\\boxed{1+x}", True),
    ],
)
def test_math(truth, answer, right):
    pytest.importorskip("math_verify")
    assert verify("math", truth, answer) == right
