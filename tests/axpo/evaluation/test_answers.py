"""What an answer says: its final text, its choice, its value."""

from __future__ import annotations

import math

import pytest

from axpo.evaluation.answers import chosen, f1, final_text, normalised, within
from axpo.evaluation.values import value


def test_the_final_text_is_the_last_box_or_tag_or_all():
    assert final_text("first \\boxed{1}, then \\boxed{2}.") == "2"
    assert final_text("<answer>1</answer> no, <answer> 2 </answer>") == "2"
    assert final_text("<answer>1</answer> \\boxed{2}") == "2"
    assert final_text("  It is 3. ") == "It is 3."
    assert final_text("**3**") == "3"
    assert final_text("x" * 5000) == "x" * 2000


def test_normalised_texts_keep_signs_points_and_percent():
    same = {
        "The Exit!": "exit",
        "$1,000": "1000",
        "well-known": "well known",
        "U.S.": "us",
        "A": "a",
        "O'Neil": "oneil",
        "\u22122": "-2",
        "\\text{Exit}": "exit",
        "50\\%": "50%",
    }
    assert {text: normalised(text) for text in same} == same
    for one, other in (("-2", "2"), ("3.5", "35"), ("10%", "10"), ("0.5", "5")):
        assert normalised(one) != normalised(other)


def test_a_choice_is_named_by_letter_or_words():
    options = ("red", "dark red", "blue")
    named = {
        **{"B": 1, "(b)": 1, "B. red": 1, "\\text{B}": 1, "**B**": 1, "Answer: B": 1},
        **{"The answer is (C).": 2, "option C": 2, "It is dark red": 1, "red": 0, "Blue!": 2},
        **{"A red cup": 0, "the answer is a red cup": 0, "First B, but the answer is C.": 2},
        **{"red or blue": None, "D": None, "": None, "green": None, "reddish": None},
    }
    assert {text: chosen(text, options) for text in named} == named
    # Options that are letters themselves, of which none is a choice's.
    named = {"R": 2, "r": 2, "C": 2, "the letter R": None, "T": None}
    assert {text: chosen(text, ("P", "Q", "R", "S")) for text in named} == named
    # A letter in a formula names nothing.
    for text in ("P(A)", "P(A) = 0.3", "\\angle C", "AB = C", "f (B) = 2"):
        assert chosen(text, options) is None
    # Options of the same words cannot be told apart by them.
    assert chosen("4", ("4", "4", "5")) is None
    assert chosen("B", ("4", "4", "5")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+\\sqrt{3}", 2 + math.sqrt(3)),
        ("\\frac{9}{2}", 4.5),
        ("-\\frac{\\pi}{2}", -math.pi / 2),
        ("3\\pi", 3 * math.pi),
        ("2(3+1)", 8.0),
        ("\\sqrt[3]{8}", 2.0),
        ("2^{10}", 1024.0),
        ("-2^2", -4.0),
        ("1,250.5", 1250.5),
        ("x = 4", 4.0),
        ("12.5 cm", 12.5),
        ("5\\text{ cm}", 5.0),
        ("40^\\circ", 40.0),
        ("1e3", 1000.0),
        ("2√3", 2 * math.sqrt(3)),
        ("\\approx 4.5", 4.5),
    ],
)
def test_values(text, expected):
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "3 4",
        "1/0",
        "9^{9^{9^9}}",
        "(-8)^(1/3)",
        "12\\%",
        "3 or 4",
        "(" * 50 + "1",
        "1" * 500,
    ],
)
def test_what_has_no_value(text):
    assert value(text) is None


def test_tolerances_are_absolute_or_relative():
    assert within(6.284, 6.283, absolute=0.001)
    assert not within(6.2841, 6.283, absolute=0.001)
    assert within(101.0, 100.0, relative=0.01)
    assert not within(101.1, 100.0, relative=0.01)
    assert within(-99.0, -100.0, relative=0.01)
    assert not within(None, 1.0, absolute=9)
    assert not within(math.inf, 1.0, absolute=9)


def test_f1_is_squads():
    assert f1("The red, car", ["red car"]) == 1.0
    assert f1("red car", ["red bike", "blue"]) == 0.5
    # Three of the answer's four, of the truth's three: 2 * 3/4 * 1 / (7/4).
    assert f1("in October 4 2024", ["October 4, 2024"]) == pytest.approx(6 / 7)
    assert f1("\\text{red car}", ["red car"]) == 1.0
    assert f1("none", ["red"]) == f1("x", []) == 0.0
