"""Small digits: they are real, the split is honest, the teacher is as imprecise as it claims."""

import json

import numpy as np

from axpo.tasks.embedded.pictures import COLOURS, digits
from axpo.tasks.embedded.small_digit import SmallDigit, SmallDigitConfig
from axpo.tasks.embedded.zoom_teacher import TeacherConfig
from axpo.tasks.verifiers import boxed, exact_match

TASK = SmallDigit(SmallDigitConfig(held_out=16))


def test_questions_are_a_function_of_their_index():
    a, b = TASK.train(5), SmallDigit(SmallDigitConfig()).train(5)
    assert (a.text, a.answer, a.info) == (b.text, b.answer, b.info)
    assert np.array_equal(a.images[0], b.images[0])
    assert a.images[0].shape == (256, 256, 3)
    assert TASK.train(6).images[0].tobytes() != a.images[0].tobytes()


def test_held_out_digits_are_never_trained_on():
    train, test = (digits(split)[0] for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert len(test) == 360
    shown = [q.id for q in TASK.held_out()]
    assert len(set(shown)) == 16
    assert all(name.startswith("test-") for name in shown)


def test_the_answer_is_the_digit_asked_for():
    kinds = set()
    for index in range(40):
        question = TASK.train(index)
        kinds.add(question.info["kind"])
        assert question.answer in set("0123456789")
        assert all(colour in question.text for colour in question.info["asked"])
        assert TASK.verify(question, f"The answer is \\boxed{{{question.answer}}}.") == 1.0
        assert TASK.verify(question, "unknown") == 0.0
    assert kinds == {"frame", "larger"}


def test_a_control_asks_what_the_whole_view_shows_and_leaves_the_others_as_they_are():
    mixed = SmallDigit(SmallDigitConfig(held_out=1, control_share=0.3))
    controls = 0
    for index in range(200):
        question, other = mixed.train(index), TASK.train(index)
        assert np.array_equal(question.images[0], other.images[0])
        if question.info["kind"] != "control":
            assert (question.text, question.answer, question.info) == (
                other.text,
                other.answer,
                other.info,
            )
            continue
        controls += 1
        # A frame has 32 * 32 - 22 * 22 = 540 pixels of its colour.
        pixels = [(question.images[0] == rgb).all(axis=2).sum() for rgb in COLOURS.values()]
        frames = sum(count > 400 for count in pixels)
        assert (question.text, question.answer) == (
            "How many frames are in the picture?",
            str(frames),
        )
    assert 40 < controls < 80


def test_the_teacher_zooms_on_controls_too_and_it_makes_no_difference():
    task = SmallDigit(SmallDigitConfig(control_share=1.0))
    lengths = []
    for index in range(300):
        question, turns, tools = task.example("demonstration", index)
        assert tools
        assert task.verify(question, turns[-1].partition("</think>")[2]) == 1.0
        lengths.append(len(turns))
    assert set(lengths) == {1, 3}
    assert 0.22 < lengths.count(3) / 300 < 0.38  # tool_rate 0.3


def test_the_teacher_zooms_as_often_and_as_badly_as_its_recipe_says():
    task = SmallDigit(
        SmallDigitConfig(grid=8, larger_share=0, teacher=TeacherConfig(tool_rate=0.3, care=0.2))
    )
    zooms = careful = careful_hits = hasty_hits = 0
    for index in range(1500):
        question, turns, _ = task.example("demonstration", index)
        if len(turns) == 1:
            assert task.verify(question, turns[0].partition("</think>")[2]) == 1.0
            continue
        zooms += 1
        hit = "unknown" not in turns[-1]
        if '"arguments": {"label"' in turns[0]:
            careful += 1
            careful_hits += hit
        else:
            hasty_hits += hit
    assert 0.25 < zooms / 1500 < 0.35
    assert 0.14 < careful / zooms < 0.26
    assert careful_hits == careful
    # The scene's edge undoes a miss. On one axis that takes a frame of an outer column (1/2) that
    # is missed outwards (1/2); on both axes it happens to 1/16 of the calls.
    assert 0.02 < hasty_hits / (zooms - careful) < 0.12


def test_a_careful_teacher_always_finds_the_answer():
    task = SmallDigit(SmallDigitConfig(grid=8, teacher=TeacherConfig(tool_rate=1.0, care=1.0)))
    for index in range(50):
        question, turns, _ = task.example("demonstration", index)
        assert boxed(turns[-1]) == question.answer


def test_a_sheet_names_every_cell():
    question, turns, tools = TASK.example("sheet", 3)
    words = turns[0].partition("\n</think>")[0].split()
    assert words[::3] == list("abcdefghijklmnop")
    assert set(words[1::3]) <= {"red", "blue", "green", "yellow"}
    assert set(words[2::3]) <= set("0123456789")
    assert question.images[0].shape == (256, 256, 3)
    assert not tools


def test_boxes_hold_what_they_name():
    task = SmallDigit(SmallDigitConfig(frames=(1, 1), larger_share=0, grid=8))
    for index in range(20):
        question, turns, _ = task.example("boxes", index)
        arguments = json.loads(turns[0].partition("\n</think>")[0])
        colour = arguments["label"].split()[0]
        left, top, right, bottom = (round(v * 256 / 1000) for v in arguments["bbox_2d"])
        crop = question.images[0][top:bottom, left:right].reshape(-1, 3)
        # A frame of 32 px with a border of 5 has 32 * 32 - 22 * 22 = 540 pixels of its colour.
        assert (crop == COLOURS[colour]).all(axis=1).sum() == 540


def test_a_crop_names_what_is_in_it_and_nothing_else():
    task, empty = SmallDigit(SmallDigitConfig(grid=8)), 0
    for index in range(40):
        question, turns, _ = task.example("crop", index)
        assert question.images[0].shape == (64, 64, 3)
        words = turns[0].partition("\n</think>")[0]
        shown = {
            c for c, rgb in COLOURS.items() if (question.images[0] == rgb).all(axis=2).sum() == 540
        }
        assert shown == ({words.split()[0]} if words != "none" else set())
        empty += words == "none"
    assert 2 <= empty <= 20


def test_exact_match_reads_the_last_box():
    assert boxed("\\boxed{1} no, \\boxed{ 2 }") == "2"
    assert boxed(None) is None
    assert exact_match("\\boxed{Yes}", "yes") == 1.0
    assert exact_match("yes", "yes") == 0.0
