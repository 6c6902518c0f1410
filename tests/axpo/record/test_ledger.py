"""The rules of the log of questions."""

from __future__ import annotations

import pytest

from axpo.record.ledger import Balance, Ledger, balance, read


def rows(text: str) -> list[dict]:
    """Return events from lines of `EVENT QUESTION`."""
    keys = ("event", "question")
    return [dict(zip(keys, line.split(), strict=False)) for line in text.strip().splitlines()]


def test_every_question_is_somewhere_exactly_once():
    events = rows("dispatched a\ndispatched b\nrequeued a\ntrained a\ndropped b\ndispatched c")
    assert balance(events) == Balance(dispatched=3, trained=1, dropped=1, in_flight=1)


@pytest.mark.parametrize(
    "text",
    [
        "dispatched a\ndispatched a",
        "dispatched a\ntrained a\ntrained a",
        "trained a",
        "dispatched a\ndropped a\ntrained a",
    ],
)
def test_a_question_twice_or_out_of_nowhere_is_refused(text):
    with pytest.raises(ValueError, match="question a was"):
        balance(rows(text))


def test_a_resume_dispatches_again_what_was_in_flight():
    first = "dispatched a\ndispatched b\ntrained a\n"
    second = "started\ndispatched b\ntrained b"
    assert balance(rows(first + second)) == Balance(1, 1, 0, 0)


def test_a_cut_off_line_is_left_out(tmp_path):
    Ledger(tmp_path / "log").log("dispatched", question="a", step=0)
    with (tmp_path / "log").open("a") as file:
        file.write('{"event": "trai')
    (row,) = read(tmp_path / "log")
    assert (row["event"], row["question"], row["step"]) == ("dispatched", "a", 0)
