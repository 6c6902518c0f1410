"""Micro-batches and batches are made in a thread, one ahead."""

import threading

import pytest

from learner.ahead import made_ahead


def test_one_is_made_while_the_last_is_in_use():
    made, begun = [], threading.Event()

    def make(number):
        made.append(number)
        if number == 1:
            begun.set()
        return number * 10

    things = made_ahead(make, 3)
    assert next(things) == 0
    # The second is made without being asked for, the third is not.
    assert begun.wait(10)
    assert made == [0, 1]
    assert list(things) == [10, 20]
    assert list(made_ahead(make, 0)) == []


def test_what_the_thread_raises_is_raised():
    def make(number):
        if number == 1:
            raise ValueError("bad image")
        return number

    things = made_ahead(make, 3)
    assert next(things) == 0
    with pytest.raises(ValueError, match="bad image"):
        list(things)
