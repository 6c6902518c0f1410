"""The strict, block-by-block reading of tool calls from token ids."""

import numpy as np
import pytest

from rollout_workers.parser import MAX_CHARACTERS, BadCall, Call, parse_turn

GOOD = '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2]}}\n</tool_call>'


def parse(chat, text):
    return parse_turn(chat.encode_policy(text), chat.tokens, chat.decode)


def message(chat, body):
    (call,) = parse(chat, f"</think>\n<tool_call>{body}</tool_call><|im_end|>").calls
    assert isinstance(call, BadCall)
    assert call.message.startswith("malformed call: ")
    return call.message


def test_an_answer_is_the_text_after_thinking(chat):
    turn = parse(chat, "let me see\n</think>\n\nthe digit is 7<|im_end|>")
    assert (turn.answer_text, turn.calls) == ("the digit is 7", ())


def test_a_call_is_read(chat):
    turn = parse(chat, f"look\n</think>\n{GOOD}<|im_end|>")
    assert (turn.answer_text, turn.calls) == (None, (Call("zoom", {"box": [1, 2]}),))


def test_thinking_that_never_closes_has_neither_answer_nor_call(chat):
    turn = parse(chat, f"look {GOOD} and answer 7<|im_end|>")
    assert (turn.answer_text, turn.calls) == (None, ())


def test_a_literal_tag_inside_thinking_is_no_call(chat):
    turn = parse(chat, f"maybe {GOOD}? no\n</think>7<|im_end|>")
    assert (turn.answer_text, turn.calls) == ("7", ())


def test_a_bad_block_does_not_spoil_a_good_one(chat):
    bad, good = parse(
        chat, f'</think><tool_call>{{"name": zoom}}</tool_call>{GOOD}<|im_end|>'
    ).calls
    assert isinstance(bad, BadCall)
    assert good == Call("zoom", {"box": [1, 2]})


def test_a_block_that_is_never_closed(chat):
    (call,) = parse(chat, '</think><tool_call>{"name": "zoom", "arguments": {}}<|im_end|>').calls
    assert call == BadCall("malformed call: <tool_call> is never closed by </tool_call>")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"name": "zoom", "arguments": {"x": NaN}}', "NaN is not a JSON number"),
        ('{"name": "zoom", "arguments": {"x": -Infinity}}', "-Infinity is not a JSON number"),
        ('{"name": "zoom", "arguments": {"x": 1e999}}', "number out of range"),
        ('{"name": "zoom", "name": "python", "arguments": {}}', "duplicate key"),
        ('{"name": "zoom", "arguments": {"x": 1, "x": 2}}', "duplicate key"),
        ('{"name": "zoom", "arguments": "{}"}', '"arguments" is not an object'),
        ('{"name": "zoom", "arguments": []}', '"arguments" is not an object'),
        ('{"name": 3, "arguments": {}}', '"name" is not a string'),
        ('{"name": "zoom"}', "expected an object"),
        ('{"name": "zoom", "arguments": {}, "id": 1}', "expected an object"),
        ('[{"name": "zoom", "arguments": {}}]', "expected an object"),
        ('{"name": "zoom", "arguments": {"x": "\\ud800"}}', "not valid JSON"),
        ('{"name": "zoom", "arguments": {"x": "a\nb"}}', "not valid JSON"),
        ('{"name": "zoom", "arguments": {"x": ' + "9" * 5000 + "}}", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_malformed_says_why(chat, body, expected):
    assert expected in message(chat, body)


@pytest.mark.parametrize("levels", [17, 4000])
def test_deep_nesting_is_refused(chat, levels):
    assert "nested deeper than 16 levels" in message(
        chat, '{"name": "zoom", "arguments": {"x": ' + "[" * levels + "]" * levels + "}}"
    )


def test_a_huge_call_is_refused(chat):
    body = '{"name": "zoom", "arguments": {"x": "' + "a" * MAX_CHARACTERS + '"}}'
    assert f"at most {MAX_CHARACTERS}" in message(chat, body)


def test_an_empty_turn(chat):
    assert parse_turn(np.zeros(0, np.int32), chat.tokens, chat.decode).calls == ()
