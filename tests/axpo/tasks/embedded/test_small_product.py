"""Products of numbers in a picture.

Answers are right, the teacher is as imprecise as it claims, and its code prints what the tool's
result says.
"""

import contextlib
import io
import json
import re

import numpy as np

from axpo.tasks.embedded.pictures import COLOURS
from axpo.tasks.embedded.small_product import ProductTeacherConfig, SmallProduct, SmallProductConfig

TASK = SmallProduct(SmallProductConfig(held_out=16))


def code_of(turn):
    return json.loads(turn.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0])[
        "arguments"
    ]["code"]


def printed(code):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    return out.getvalue().strip()


def test_questions_are_a_function_of_their_index():
    a, b = TASK.train(5), SmallProduct(SmallProductConfig()).train(5)
    assert (a.text, a.answer, a.info) == (b.text, b.answer, b.info)
    assert np.array_equal(a.images[0], b.images[0])
    assert a.images[0].shape == (384, 384, 3)
    assert TASK.train(6).images[0].tobytes() != a.images[0].tobytes()
    assert len({question.id for question in TASK.held_out()}) == 16


def test_the_picture_shows_the_numbers_that_are_asked_for():
    for index in range(30):
        question, turns, tools = TASK.example("numbers", index)
        words = turns[0].partition("\n</think>")[0].split()
        assert not tools
        for colour, number in zip(words[::2], words[1::2], strict=True):
            # One frame a digit: 96 * 96 - 72 * 72 = 4,032 pixels of its colour.
            assert (question.images[0].reshape(-1, 3) == COLOURS[colour]).all(
                axis=1
            ).sum() == 4032 * len(number)


def test_the_answer_is_a_number_or_the_product():
    kinds = set()
    for index in range(60):
        question, turns, tools = TASK.example("codes", index)
        code = json.loads(turns[0].partition("\n</think>")[0])["code"]
        for line, colour in zip(
            code.splitlines(), re.findall(r"the (\w+) number", question.text), strict=False
        ):
            assert line.startswith(f"{colour} = ")
        kinds.add("times" in question.text)
        assert ("*" in code) == ("times" in question.text)
        assert tools
        question = TASK.train(index)
        assert (int(question.answer) <= 99) == (question.info["kind"] == "easy")
        assert TASK.verify(question, f"\\boxed{{{question.answer}}}") == 1.0
    assert kinds == {True, False}


def test_the_teacher_calls_as_often_and_as_badly_as_its_recipe_says():
    calls = hits = easy = easy_right = hard = hard_right = 0
    for index in range(500):
        question, turns, _ = TASK.example("demonstration", index)
        right = TASK.verify(question, turns[-1].partition("</think>")[2])
        if len(turns) == 3:
            calls, hits = calls + 1, hits + right
            assert turns[1] == (printed(code_of(turns[0])), ())
        elif question.info["kind"] == "easy":
            easy, easy_right = easy + 1, easy_right + right
        else:
            hard, hard_right = hard + 1, hard_right + right
    assert 0.26 < calls / 500 < 0.34
    assert 0.09 < hits / calls < 0.17  # care 0.13; a hasty call is always wrong
    assert easy_right == easy > 120
    assert hard_right / hard < 0.05  # 20 * 30 may be just that


def test_a_careful_teacher_is_always_right():
    task = SmallProduct(SmallProductConfig(teacher=ProductTeacherConfig(tool_rate=1.0, care=1.0)))
    for index in range(50):
        question, turns, _ = task.example("demonstration", index)
        assert printed(code_of(turns[0])) == question.answer
        assert task.verify(question, turns[-1].partition("</think>")[2]) == 1.0


def test_the_lesson_of_results_prints_what_the_answer_repeats():
    lengths = set()
    for index in range(60):
        question, turns, tools = TASK.example("results", index)
        assert not tools
        assert not question.images
        assert turns[1] == (question.answer, ())
        assert TASK.verify(question, turns[-1].partition("</think>")[2]) == 1.0
        lengths.add(len(question.answer))
    assert min(lengths) == 3
    assert max(lengths) > 20  # far more digits than a product has
