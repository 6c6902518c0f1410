"""The paper's nine benchmarks on invented rows: which answers are right."""

from __future__ import annotations

import pytest

from axpo.evaluation.formulas import equal, parts
from axpo.evaluation.paper.math_vr import all_boxes
from tests.axpo.evaluation import invented
from tests.axpo.evaluation.invented import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return invented.write(tmp_path_factory.mktemp("data"))


BOX = "So it is \\boxed{%s}."
RIGHT, WRONG, OPEN = True, False, None
"""OPEN: the rules cannot tell, a judge must."""


def check(data, name, question, table, boxed=True):
    benchmark, items = load(name, data)
    assert len(table) >= 12
    found = {}
    for answer in table:
        text = BOX % answer if boxed and "\\boxed" not in answer else answer
        found[answer] = benchmark.score(items[question], text).right
    assert found == table


def test_scores_of_mathvisions_numbers(data):
    table = {
        "6": RIGHT,
        "6.0": RIGHT,
        "$6$": RIGHT,
        "\\frac{12}{2}": RIGHT,
        "x = 6": RIGHT,
        "6.004": RIGHT,  # the official rule rounds to two decimals
        "2 \\cdot 3": RIGHT,
        "6.01": WRONG,
        "60": WRONG,
        "-6": WRONG,
        "six or seven": WRONG,
        "": WRONG,
        "(6, 6)": WRONG,
        "I counted 6 and then \\boxed{7}": WRONG,
        "9^{9^{9^{9^9}}}": WRONG,
    }
    check(data, "mathvision", "71", table)


def test_scores_of_mathvisions_choices_by_letter_or_value(data):
    table = {
        "C": RIGHT,
        "(c)": RIGHT,
        "{C}": RIGHT,
        "\\text{C}": RIGHT,
        "C. $\\frac{9}{2}$": RIGHT,
        "\\frac{9}{2}": RIGHT,
        "9/2": RIGHT,
        "4.5": RIGHT,
        "\\dfrac92": RIGHT,
        "A": WRONG,
        "B": WRONG,
        "4": WRONG,
        "5": WRONG,
        "2+\\sqrt{3}": WRONG,
        "C or D": WRONG,
        "F": WRONG,
        "4.6": WRONG,
    }
    check(data, "mathvision", "73", table)
    letters = {"D": RIGHT, "d": RIGHT, "(D)": RIGHT, "E": WRONG, "4": WRONG, "A, D": WRONG}
    benchmark, items = load("mathvision", data)
    found = {answer: benchmark.score(items["72"], BOX % answer).right for answer in letters}
    assert found == letters


def test_scores_of_dynamaths_floats_have_an_absolute_tolerance(data):
    table = {
        "6.2832": RIGHT,
        "6.283": RIGHT,  # 0.0002 off
        "6.284": RIGHT,  # 0.0008 off
        "2\\pi": RIGHT,
        "2π": RIGHT,
        "\\frac{4\\pi}{2}": RIGHT,
        "T = 6.283": RIGHT,
        "\\approx 6.283": RIGHT,
        "≈ 6.283": RIGHT,
        "6.283 \\text{ s}": RIGHT,
        "6.285": WRONG,  # 0.0018 off
        "6.28": WRONG,  # 0.0032 off
        "6": WRONG,
        "-6.2832": WRONG,
        "\\pi": WRONG,
        "about six": WRONG,
        "6.2832, 3.1416": WRONG,
        "": WRONG,
    }
    check(data, "dynamath", "1-1", table)


def test_scores_of_dynamaths_texts_and_choices(data):
    texts = {"May": RIGHT, "may.": RIGHT, "the May": RIGHT, "M": WRONG, "a": WRONG, "": WRONG}
    texts |= {"June": WRONG, "May and June": WRONG}
    benchmark, items = load("dynamath", data)
    found = {answer: benchmark.score(items["1-2"], BOX % answer).right for answer in texts}
    assert found == texts
    table = {
        "B": RIGHT,
        "(b)": RIGHT,
        "B. even": RIGHT,
        "even": RIGHT,
        "(B) even": RIGHT,
        "**B**": RIGHT,
        "The answer is B.": RIGHT,
        "A": WRONG,
        "odd": WRONG,
        "neither": WRONG,
        "B or C": WRONG,
        "D": WRONG,
        "": WRONG,
    }
    check(data, "dynamath", "1-3", table)


def test_scores_of_math_vr_want_every_answer(data):
    table = {
        "70^{\\circ}, 70^{\\circ}": RIGHT,
        "70, 70": RIGHT,
        "\\angle B = 70^\\circ, \\angle C = 70^\\circ": RIGHT,
        "70°; 70°": RIGHT,
        "70^\\circ \\text{ and } 70^\\circ": RIGHT,
        "\\angle B = 70 \\\\ \\angle C = 70": RIGHT,
        "70 or 70": OPEN,
        "\\boxed{70^\\circ} and \\boxed{70^\\circ}": RIGHT,
        "First \\boxed{40}, then \\boxed{70}, \\boxed{70}": RIGHT,
        "70": OPEN,
        "70, 40": OPEN,
        "40, 70": OPEN,
        "70, 70, 70": OPEN,
        "\\boxed{70} and \\boxed{71}": OPEN,
        "": OPEN,
    }
    check(data, "math-vr", "0", table)
    one = {"2\\sqrt{2}": RIGHT, "\\sqrt{8}": RIGHT, "PA + PB = 2\\sqrt2": RIGHT, "2.83": RIGHT}
    one |= {"2": OPEN, "2\\sqrt{3}": OPEN, "4": OPEN, "a diameter": OPEN}
    benchmark, items = load("math-vr", data)
    found = {answer: benchmark.score(items["1"], BOX % answer).right for answer in one}
    assert found == one
    assert benchmark.score(items["1"], "It is two root two.").right is OPEN


def test_points_and_lists_are_compared_element_by_element_to_two_decimals():
    truth = "(1, \\frac{2}{3})"
    given = {"(1, 0.667)": True, "(1.001, 2/3)": True, "\\left(1, \\frac23\\right)": True}
    given |= {"(2/3, 1)": False, "[1, 0.667]": False, "(1, 0.68)": False, "(1, 0.667, 0)": False}
    assert {text: equal(truth, text) for text in given} == given
    assert equal("2, 2\\sqrt{2}", "2, 2.83")
    assert not equal("(1, (2, 3))", "(1, (2, 4))")


def test_the_answers_in_a_box_are_divided_by_commas_outside_of_brackets():
    assert parts("(1, 2), 3; 4") == ["(1, 2)", "3", "4"]
    assert parts("1,000, 2\\,000") == ["1,000", "2\\,000"]
    assert all_boxes("\\boxed{a{b}} c \\boxed{\\boxed{d}} \\boxed{e") == ["a{b}", "\\boxed{d}"]


@pytest.mark.parametrize("name", ["vstar", "hrbench-4k", "hrbench-8k"])
def test_scores_of_choices_about_pictures(data, name):
    # V*: red, blue, green, white, and B is right. HR-Bench: 12, 21, 17, 71, and C is right.
    letter, words, other, others = ("B", "blue", "A", "red")
    if name != "vstar":
        letter, words, other, others = ("C", "17", "D", "71")
    table = {
        letter: RIGHT,
        f"({letter.lower()})": RIGHT,
        f"{letter}. {words}": RIGHT,
        words: RIGHT,
        f"The number or colour is {words}, clearly": RIGHT,
        f"Not sure, but the answer is ({letter})": RIGHT,
        f"It is ({letter})": RIGHT,
        f"I think it's {letter}": RIGHT,
        f"option {letter.lower()}": RIGHT,
        f"**{letter}**": RIGHT,
        other: WRONG,
        others: WRONG,
        f"{other}. {words}": WRONG,  # the letter counts
        f"The answer is {other}.": WRONG,
        f"{words} or {others}": OPEN,
        f"{letter} or {other}": OPEN,
        f"({letter}) or ({other})": OPEN,
        "I think it's F": OPEN,
        "I cannot tell": OPEN,
        "F": OPEN,
        "": OPEN,
    }
    check(data, name, "0", table)
    unboxed = dict(table) | {f"<answer>{letter}</answer>": RIGHT}
    check(data, name, "0", unboxed, boxed=False)


def test_scores_of_visual_probe(data):
    table = {
        "Exit": RIGHT,
        "exit": RIGHT,
        "EXIT.": RIGHT,
        '"Exit"': RIGHT,
        "the exit": RIGHT,
        "<answer>Exit</answer>": RIGHT,
        " Exit ": RIGHT,
        "Exit!": RIGHT,
        "**Exit**": RIGHT,
        "\\boxed{\\text{Exit}}": RIGHT,
        "Exits": OPEN,
        "Entry": OPEN,
        "It says Exit": OPEN,
        "Exit or Entry": OPEN,
        "": OPEN,
    }
    check(data, "visualprobe-hard", "visual_probe_hard_0", table, boxed=False)
    boxed = {"4": RIGHT, "4.": RIGHT, "-4": OPEN, "4.0": OPEN, "four": OPEN, "40": OPEN, "4%": OPEN}
    benchmark, items = load("visualprobe-hard", data)
    asked = items["visual_probe_hard_1"]
    assert {one: benchmark.score(asked, BOX % one).right for one in boxed} == boxed


def test_scores_of_hr_mmsearch(data):
    table = {
        "Jane Example": RIGHT,
        "jane example": RIGHT,
        "J. Example": RIGHT,
        "J Example": RIGHT,
        "Jane Example!": RIGHT,
        "the Jane Example": RIGHT,
        "Jane-Example": RIGHT,
        "Jane": OPEN,
        "Example": OPEN,
        "Jane Example and John Sample": OPEN,
        "It was Jane Example": OPEN,
        "nobody": OPEN,
        "": OPEN,
    }
    check(data, "hr-mmsearch", "1", table)


def test_scores_of_mmsearch_and_the_official_f1(data):
    table = {
        "October 4, 2024": RIGHT,
        "october 4 2024": RIGHT,
        "2024-10-04": RIGHT,
        "October 4, 2024.": RIGHT,
        "the October 4, 2024": RIGHT,
        "4 October 2024": OPEN,
        "October 4th, 2024": OPEN,
        "October 5, 2024": OPEN,
        "2024": OPEN,
        "-2024-10-04": OPEN,
        "soon": OPEN,
        "": OPEN,
    }
    check(data, "mmsearch", "news_1", table)
    benchmark, items = load("mmsearch", data)
    f1 = {"October 4, 2024": 1.0, "4 October 2024": 1.0, "soon": 0.0}
    # Two of the answer's two and of the truth's three tokens: 2 * 1 * (2/3) / (1 + 2/3).
    f1 |= {"October 2024": 0.8, "the October 2024 of film fans": pytest.approx(4 / 8)}
    for answer, value in f1.items():
        assert benchmark.score(items["news_1"], BOX % answer).columns == {"f1": value}
