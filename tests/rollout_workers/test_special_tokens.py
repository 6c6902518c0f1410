"""How one turn is read, with ids written by hand.

1 is think_close, 6 think_open, 2 call_open, 3 call_close, 4 im_end; from 20 on they are words.
"""

from dataclasses import replace

import pytest

from rollout_workers.special_tokens import SpecialTokens, read_turn

INSIDE = SpecialTokens(
    im_start=5,
    im_end=4,
    think_close=1,
    call_open=2,
    call_close=3,
    vision_start=7,
    vision_end=8,
    image_pad=9,
    video_pad=10,
    think_open=6,
)
OUTSIDE = replace(INSIDE, opens_thinking=False)
SPELLED = replace(
    OUTSIDE,
    think_close=None,
    think_open=None,
    spelled={20: "a<", 21: "think", 22: ">b", 23: "</", 24: ".</thi", 25: "nk", 26: ">", 27: "a"},
)


@pytest.mark.parametrize(
    ("ids", "calls", "text"),
    [
        ([20, 1, 21, 4], [], (2, 3)),
        ([20, 1, 2, 21, 3, 4], [(2, 5)], (2, 5)),
        ([20, 2, 21, 3, 1, 22], [], (5, 6)),
        ([20, 2, 21, 3, 4], [], None),  # thinking never closes
        ([1, 6, 2, 3, 1, 4], [(2, 4)], (1, 5)),  # thinking ends once a turn
        ([1, 2, 21, 6, 4], [(1, 4)], (1, 4)),  # the call never closes
        ([], [], None),
        ([4], [], None),
    ],
)
def test_a_turn_that_opens_inside_thinking(ids, calls, text):
    reading = read_turn(ids, INSIDE)
    assert (reading.calls, reading.text) == (calls, text)


@pytest.mark.parametrize(
    ("ids", "calls", "text"),
    [
        ([21, 4], [], (0, 1)),
        ([2, 21, 3, 4], [(0, 3)], (0, 3)),
        ([20, 2, 21, 3, 2, 22], [(1, 4), (4, 6)], (0, 6)),
        ([6, 2, 21, 3, 1, 22, 4], [], (5, 6)),
        ([6, 20, 1, 2, 21, 3, 6, 2, 1, 2, 3, 4], [(3, 6), (9, 11)], (9, 11)),
        ([21, 6, 2, 3, 4], [], None),  # thinking never closes
        ([2, 6, 21, 3, 4], [(0, 4)], (0, 4)),  # a tag inside a call
        ([21, 1, 22, 4], [], (0, 3)),  # a tag that closes nothing
        ([], [], (0, 0)),
        ([4], [], (0, 0)),
    ],
)
def test_a_turn_that_opens_outside_thinking(ids, calls, text):
    reading = read_turn(ids, OUTSIDE)
    assert (reading.calls, reading.text) == (calls, text)


@pytest.mark.parametrize(
    ("ids", "calls", "text", "closing"),
    [
        # "a<think>b", a call, ".</think>" and a word
        ([20, 21, 22, 2, 50, 3, 24, 25, 26, 51, 4], [], (9, 10), 6),
        # "a<think>b", "</think>b": the last token of the tag holds the answer's beginning
        ([20, 21, 22, 23, 21, 22, 4], [], (6, 6), 3),
        # A word between the pieces: no tag.
        ([20, 50, 21, 22, 2, 50, 3, 4], [(4, 7)], (0, 7), 0),
        # "a<" and "a" do not open anything.
        ([20, 27, 21, 22, 2, 50, 3, 4], [(4, 7)], (0, 7), 0),
    ],
)
def test_tags_spelled_in_pieces(ids, calls, text, closing):
    reading = read_turn(ids, SPELLED)
    assert (reading.calls, reading.text, reading.closing) == (calls, text, closing)


def test_banned_are_placeholders_and_ids_without_text():
    assert INSIDE.banned == (7, 8, 9, 10)
    assert replace(INSIDE, unused=(90, 93)).banned == (7, 8, 9, 10, 90, 91, 92)
