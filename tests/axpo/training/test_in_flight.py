"""The questions in flight: what a wait returns for, and what it costs when there are many."""

import gc
import threading
import time
import weakref

import pytest

from axpo.training.in_flight import InFlight, QuestionInFlight
from rollout_workers.trajectory import Group, Question

QUESTION = Question("0", "?", (), "7")
AT_ONCE_S = 5.0
"""Far more than a wait takes that need not wait, far less than a test may take."""


def asked(index, version=0):
    return QuestionInFlight(index, QUESTION, version)


def filled(*questions):
    in_flight = InFlight()
    for question in questions:
        in_flight.add(question)
    return in_flight


def indices(questions):
    return [question.index for question in questions]


def test_questions_are_finished_or_overdue_and_forgotten_as_they_are_taken():
    old, young, done = asked(0, version=1), asked(1, version=2), asked(2, version=1)
    done.result.set_result(None)  # before it is added: a resume restores finished groups
    in_flight = filled(old, young, done)
    assert (len(in_flight), indices(in_flight)) == (3, [0, 1, 2])
    assert indices(in_flight.finished()) == [2]
    assert [indices(in_flight.overdue(version)) for version in (0, 1, 2)] == [[], [0], [0, 1]]
    young.result.set_result(None)
    assert indices(in_flight.finished()) == [2, 1]
    assert indices(in_flight.overdue(2)) == [0]
    in_flight.forget([done, old])
    assert indices(in_flight) == indices(in_flight.finished()) == [1]
    assert in_flight.overdue(2) == []
    # What is cancelled after it was given up fails nobody's wait.
    old.result.cancel()
    in_flight.wait_for_finished(1)
    in_flight.wait_for_overdue(2)


@pytest.mark.parametrize("wait", ["wait_for_finished", "wait_for_overdue"])
def test_a_wait_ends_when_the_last_awaited_question_finishes(wait):
    first, second = asked(0), asked(1)
    in_flight = filled(first, second)
    first.result.set_result(None)
    threading.Timer(0.2, second.result.set_result, [None]).start()
    begun = time.monotonic()
    # More than there are: all of them.
    getattr(in_flight, wait)(3)
    assert 0.15 < time.monotonic() - begun < AT_ONCE_S


@pytest.mark.parametrize("wait", ["wait_for_finished", "wait_for_overdue"])
def test_a_bug_in_one_question_ends_the_wait_for_others(wait):
    first, second = asked(0), asked(1)
    in_flight = filled(first, second)
    threading.Timer(0.1, first.result.set_exception, [IndexError("a bug")]).start()
    with pytest.raises(IndexError, match="a bug"):
        getattr(in_flight, wait)(2)


def test_the_trainer_is_woken_once_and_not_at_every_finish():
    questions = [asked(i) for i in range(50)]
    in_flight = filled(*questions)
    looks = 0
    is_enough = in_flight._ends_wait

    def counted():
        nonlocal looks
        looks += threading.current_thread() is threading.main_thread()
        return is_enough()

    in_flight._ends_wait = counted

    def finish():
        for question in questions:
            time.sleep(0.002)
            question.result.set_result(None)

    threading.Thread(target=finish).start()
    in_flight.wait_for_finished(50)
    assert looks == 2  # before the wait, and after it


def test_nothing_finishes_while_somebody_looks():
    question = asked(0)
    in_flight = filled(question)
    with in_flight.lock:
        threading.Thread(target=question.result.set_result, args=[None]).start()
        while not question.result.done():
            time.sleep(0.01)
        assert (indices(in_flight.finished()), indices(in_flight.overdue(0))) == ([], [0])
        in_flight.wait_for_overdue(0)  # which lets it finish
        assert (indices(in_flight.finished()), indices(in_flight.overdue(0))) == ([0], [])


def test_a_group_that_was_taken_is_released_at_once():
    question, group = asked(0), Group(QUESTION, (), 0)
    in_flight = filled(question)
    question.result.set_result(group)
    (taken,) = in_flight.finished()
    in_flight.forget([taken])
    released = weakref.ref(group)
    gc.disable()  # a cycle would hide here
    try:
        del question, group, taken
        assert released() is None
    finally:
        gc.enable()


def test_a_finish_costs_the_same_however_many_are_in_flight():
    def seconds(count):
        questions = [asked(index, version=index % 2) for index in range(count)]
        in_flight = filled(*questions)
        begun = time.process_time()
        for question in questions:
            question.result.set_result(None)
            in_flight.wait_for_finished(1)
        in_flight.forget(questions)
        return (time.process_time() - begun) / count

    # Rescanning all of them at each finish was 30 times as much here, and 54 ms at 32,768.
    assert seconds(16_384) < 4 * min(seconds(512) for _ in range(3))
