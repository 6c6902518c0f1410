"""Questions in, batches out, synchronous and asynchronous. The event log must balance."""

import sys
import threading
import time

import numpy as np
import pytest

from axpo.errors import AxpoError
from axpo.record.ledger import Balance, balance
from axpo.training.following import FaultCounts
from axpo.training.metrics import batch_metrics
from resampler.config import ResamplerConfig
from rollout_workers.trajectory import LazyImage, Question, UnusableQuestion
from tests.axpo.helpers import QUESTION_IMAGE
from tests.axpo.training.local import Pool, ids, recipe, resampling, start, step_of


def run(flow, steps, seconds=0.0):
    """Make steps, each followed by `seconds` of an update; return their batches."""
    taken = []
    for step in range(steps):
        taken.append(step_of(flow, step))
        time.sleep(seconds)
    return taken


def test_a_synchronous_batch_is_the_steps_questions_in_order_with_their_forks():
    flow, pool, events = start(Pool(seconds={1: 0.2}))
    for step in range(4):
        taken = step_of(flow, step)
        assert ids(taken) == list(range(4 * step, 4 * step + 4))
        assert set(taken.staleness.values()) == {0}
        # All four trigger; R = floor(0.5 * 4 * 3 / 2) * 2 = 6: three prefixes of two continuations.
        # Those of question 1 come back short, so that prefix is dropped.
        forked = [1, 0, 1, 0] if step == 0 else [1, 1, 1, 0]
        assert [len(group.resamples) for group in taken.groups] == forked
        assert taken.forks_dropped == (1 if step == 0 else 0)
    assert balance(events) == Balance(16, 16, 0, 0)
    assert pool.most == 4


def test_grpo_forks_nothing():
    flow, pool, _ = start(algorithm="grpo")
    assert [group.resamples for group in step_of(flow, 0).groups] == [()] * 4
    assert pool.forks == []


def test_prefixes_whose_continuations_call_alike_are_given_up_and_counted():
    flow, _, events = start(resampler=resampling(min_distinct_calls=2))
    taken = step_of(flow, 0)
    assert [group.resamples for group in taken.groups] == [()] * 4
    assert (taken.forks_collapsed, taken.forks_dropped) == (3, 0)
    assert [event["event"] for event in events].count("fork collapsed") == 3


def test_what_prefixes_recover_reaches_the_next_budget():
    # Of step 0's three prefixes question 1's is dropped and the others recover. That is a rate of
    # 1, so the budget stays three.
    adaptive = {"name": "adaptive", "ratio": 0.5, "target_recovery": 0.5}
    flow, pool, _ = start(resampler=resampling(budget=adaptive))
    run(flow, 2)
    assert len(pool.forks) == 6
    assert flow.cursor.history.recoveries == (True,) * 5


def test_streaming_forks_start_while_other_questions_still_generate():
    streaming = resampling(budget={"ratio": 2.0}, schedule="streaming")
    flow, pool, _ = start(Pool(seconds={0: 0.5}), resampler=streaming)
    step_of(flow, 0)
    assert any(in_flight for question, _, in_flight in pool.forks if question)


def test_a_group_that_infrastructure_broke_is_dropped_and_the_budget_does_not_wait_for_it():
    flow, _, events = start(Pool(broken=(2,)))
    taken = step_of(flow, 0)
    assert (ids(taken), taken.dropped, taken.verifier_failures) == ([0, 1, 3], 1, 1)
    assert balance(events) == Balance(4, 3, 1, 0)
    assert {
        "event": "verifier failed",
        "question": "2",
        "rollout": 2,
        "fault": "KeyError: 'unit'",
    } in events


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_question_that_cannot_be_asked_is_set_aside_and_the_budget_does_not_wait_for_it(dynamic):
    pool = Pool(unusable=(2,))
    flow, _, events = start(pool, dynamic_sampling=dynamic)
    taken = step_of(flow, 0)
    assert (ids(taken), taken.dropped) == ([0, 1, 3], 0)
    assert taken.unusable == ("a.jsonl, row 3: images: c.jpg cannot be read",)
    assert batch_metrics(taken)["questions_unusable"] == 1
    assert balance(events) == Balance(4, 3, 1, 0)
    reason = "a.jsonl, row 3: images: c.jpg cannot be read"
    assert {"event": "unusable", "question": "2", "reason": reason} in events
    assert {"event": "dropped", "question": "2", "step": 0, "reason": "unusable"} in events
    # Nobody is asked in its place, and the next step goes on behind it.
    assert ids(step_of(flow, 1)) == [4, 5, 6, 7]


def test_a_run_whose_data_is_gone_stops_and_says_so():
    flow, _, _ = start(Pool(unusable=range(8, 1000)), questions_per_step=8, steps=99)
    for step in range(8):  # the first batch is usable, seven are not
        taken = step_of(flow, step)
    assert (ids(taken), len(taken.unusable)) == ([], 8)
    with pytest.raises(AxpoError, match=r"^64 questions in a row cannot be asked; the last one: a"):
        step_of(flow, 8)


def test_what_a_custom_task_cannot_ask_is_passed_over():
    class Odd:
        def train(self, index):
            if index == 1:
                raise UnusableQuestion("b.jsonl, row 2: no such file")
            pixels = np.zeros((4, 4), np.uint8) if index == 3 else QUESTION_IMAGE
            text = "?\ud83d" if index == 2 else "?"
            images = (LazyImage(lambda: pixels),) if index != 3 else (pixels,)
            return Question(str(index), text, images, "7")

    flow, _, events = start()
    flow._asking._task = Odd()
    taken = step_of(flow, 0)
    assert ids(taken) == [0, 4, 5, 6]
    assert taken.unusable == (
        "b.jsonl, row 2: no such file",
        "question 2: half a surrogate pair (\\ud83d) at character 2",
        "question 3: expected an image of uint8 [height, width, 3], found uint8 [4, 4]",
    )
    assert balance(events) == Balance(4, 4, 0, 0)
    assert flow.cursor.set_aside == dict(zip("123", taken.unusable, strict=True))
    assert ids(step_of(flow, 1)) == [7, 8, 9, 10]


def test_a_question_starts_before_the_next_one_is_made():
    pool = Pool()
    flow, _, _ = start(pool)
    made = []

    class Slow:
        def train(self, index):
            # All questions before this one have reached the pool.
            for _ in range(200):
                if len(pool.asked) >= index:
                    break
                time.sleep(0.01)
            made.append((index, len(pool.asked)))
            return Question(str(index), "?", (), "7")

    flow._asking._task = Slow()
    step_of(flow, 0)
    assert made == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_the_log_has_the_training_step_and_the_number_of_the_batch():
    """Asynchronous, so that they differ: in step 0 the questions of two batches are asked."""
    flow, _, events = start(max_staleness=1)
    run(flow, 2)
    fields = {}
    for event in events:
        known = {name for name in ("step", "batch") if name in event}
        fields.setdefault(event["event"], set()).update(known)
    assert fields == {
        "dispatched": {"batch"},
        "finished": {"batch"},
        "forked": {"batch"},
        "fork dropped": {"batch"},
        "trained": {"step"},
    }
    asked = [event["batch"] for event in events if event["event"] == "dispatched"]
    assert asked == [0] * 4 + [1] * 4 + [2] * 4
    assert [event["step"] for event in events if event["event"] == "trained"] == [0] * 4 + [1] * 4


def test_a_bug_is_raised():
    flow, _, _ = start(Pool(buggy=(1,), seconds={0: 30}))
    flow.feed(0)
    with pytest.raises(IndexError, match="a bug"):
        flow.take(0)
    flow.close()


@pytest.mark.parametrize("bound", [1, 2])
def test_an_asynchronous_run_keeps_more_batches_under_way_and_no_group_is_older_than_the_bound(
    bound,
):
    rng = np.random.default_rng(bound)
    seconds = {i: float(rng.uniform(0, 0.05)) for i in range(32)}
    flow, pool, events = start(Pool(seconds=seconds), steps=8, max_staleness=bound)
    taken = run(flow, 8, 0.01)
    trained = [index for batch in taken for index in ids(batch)]
    assert sorted(trained) == list(range(32))  # each exactly once
    assert max(age for batch in taken for age in batch.staleness.values()) == bound
    assert balance(events) == Balance(32, 32, 0, 0)
    assert pool.most == 4 * (bound + 1)


def test_a_straggler_is_waited_for_at_the_bound_and_not_before():
    flow, _, _ = start(Pool(seconds={0: 0.6}), max_staleness=1)
    begun = time.monotonic()
    first = step_of(flow, 0)
    assert time.monotonic() - begun < 0.5
    assert 0 not in ids(first)
    second = step_of(flow, 1)
    assert (0 in ids(second), second.staleness["0"]) == (True, 1)
    assert time.monotonic() - begun > 0.5


def test_a_straggler_that_finishes_while_the_trainer_looks_is_in_the_batch():
    flow, _, _ = start(Pool(seconds={0: 0.5}), max_staleness=1, algorithm="grpo")
    step_of(flow, 0)
    (straggler,) = [asked for asked in flow._in_flight if asked.index == 0]
    flow.feed(1)
    time.sleep(0.2)  # all others are there
    look = flow._in_flight.wait_for_finished

    def slow_look(count):
        look(count)
        while not straggler.result.done():
            time.sleep(0.01)

    flow._in_flight.wait_for_finished = slow_look
    assert 0 in ids(flow.take(1))


def test_or_it_is_dropped_counted_and_another_question_asked():
    flow, pool, events = start(Pool(seconds={0: 30}), max_staleness=1, stale="drop")
    taken = run(flow, 4)
    assert [batch.stale for batch in taken] == [0, 1, 0, 0]
    assert sorted(i for batch in taken for i in ids(batch)) == list(range(1, 17))
    assert balance(events) == Balance(17, 16, 1, 0)
    assert pool.in_flight == 0  # its rollouts were cancelled


@pytest.fixture
def other_threads_run_between_lines():
    """While this thread takes the counts, the other threads run between any two lines.

    So what is read in one line and reset in the next is changed in between.
    """

    def trace(frame, event, argument):
        code = frame.f_code
        if not code.co_filename.endswith("following.py") or code.co_name != "take":
            return None
        if event == "line":
            time.sleep(2e-3)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    yield
    sys.settrace(before)


def test_a_fault_is_counted_once_whenever_the_counts_are_taken(other_threads_run_between_lines):
    faults, taken, done = FaultCounts(), 0, threading.Event()

    def add():
        for _ in range(2_000):
            faults.add("fork dropped")
            time.sleep(1e-4)
        done.set()

    threading.Thread(target=add).start()
    while not done.is_set():
        taken += faults.take()["fork dropped"]
    assert taken + faults.take()["fork dropped"] == 2_000


@pytest.mark.parametrize("bound", [1, 2])
def test_no_fault_is_lost_while_the_trainer_takes_a_batch_and_others_go_on(
    bound, other_threads_run_between_lines
):
    """Faults happen in questions ahead of the batch that is taken: each is in one batch's count."""
    steps = 50
    rng = np.random.default_rng(bound)
    seconds = {i: float(rng.uniform(0, 0.02)) for i in range(4 * steps)}
    pool = Pool(seconds=seconds, broken=range(0, 4 * steps, 3))
    settings = {"steps": steps, "max_staleness": bound}
    flow, _, events = start(pool, resampler=resampling(min_distinct_calls=2), **settings)
    taken = run(flow, steps)
    names = [event["event"] for event in events]
    assert names.count("verifier failed") == len(range(0, 4 * steps, 3))
    assert sum(b.verifier_failures for b in taken) == names.count("verifier failed")
    assert names.count("fork collapsed") > steps
    assert sum(b.forks_collapsed for b in taken) == names.count("fork collapsed")


def test_the_config_refuses_what_cannot_be():
    assert ResamplerConfig().schedule.name == "streaming"
    with pytest.raises(Exception, match=r"max_staleness=1: must be 0 with rollout\.colocated"):
        recipe(
            max_staleness=1,
            rollout={"colocated": True, "engine": {"weight_transfer": "shared_memory"}},
        )


def test_updates_between_batches_leave_each_batch_to_one_policy():
    pool = Pool()
    flow, _, events = start(pool, max_staleness=1, sync_at="batch")
    flow.feed(0)
    for step in range(4):
        assert ids(flow.take(step)) == list(range(4 * step, 4 * step + 4))
        # As `train_step` does: the engines get the last update, then the next batch begins.
        flow.feed(step + 1, version=step)
    begun = [
        (event["batch"], event["version"]) for event in events if event["event"] == "dispatched"
    ]
    assert sorted(set(begun)) == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert pool.most == 4  # one batch at a time
    assert balance(events) == Balance(16, 16, 0, 0)


def test_updates_between_batches_need_an_asynchronous_run():
    with pytest.raises(AxpoError, match="sync_at='batch': means nothing with max_staleness=0"):
        recipe(sync_at="batch")
