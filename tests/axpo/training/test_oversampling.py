"""More questions than a step trains: the first are trained, the stragglers are aborted."""

import time

import pytest

from axpo.record.ledger import Balance, balance
from axpo.training.metrics import batch_metrics
from tests.axpo.training.local import Pool, Task, ids, recipe, resampling, start, step_of

AT_ONCE_S = 5.0
"""Less than a straggler takes here, much more than all others."""


def oversampled(pool=None, share=0.5, **fields):
    """Return a flow that asks six questions for a batch of four, its pool and its events."""
    engine = {"weight_transfer": "shared_memory"}
    return start(pool, rollout={"n": 3, "oversample": share, "engine": engine}, **fields)


@pytest.mark.parametrize("schedule", ["batch", "streaming", "carry"])
def test_the_first_questions_are_trained_and_the_stragglers_aborted(schedule):
    flow, pool, events = oversampled(
        Pool(seconds={0: 60, 3: 60, 8: 60}), resampler=resampling(schedule=schedule)
    )
    begun = time.monotonic()
    first, second = step_of(flow, 0), step_of(flow, 1)
    assert time.monotonic() - begun < AT_ONCE_S
    assert (ids(first), first.aborted, first.dropped) == ([1, 2, 4, 5], 2, 0)
    # Aborted questions are not asked again. Of the second six one more than wanted is fast.
    assert (len(ids(second)), second.aborted) == (4, 2)
    assert set(ids(second)) < {6, 7, 9, 10, 11}
    assert batch_metrics(first)["questions_aborted"] == 2
    assert {"event": "dropped", "question": "0", "step": 0, "reason": "aborted"} in events
    assert balance(events) == Balance(12, 8, 4, 0)
    assert (pool.in_flight, pool.most) == (0, 6)


def test_the_budget_is_that_of_the_questions_trained():
    flow, pool, _ = oversampled(Pool(seconds={0: 60, 3: 60}))
    step_of(flow, 0)
    # As without oversampling: floor(0.5 * 4 * 3 / 2) = 3 prefixes. For six questions it were 4.
    assert len(pool.forks) == 3


def test_a_group_that_infrastructure_broke_is_not_among_the_first():
    flow, _, events = oversampled(Pool(seconds={0: 60}, broken=(2,)))
    taken = step_of(flow, 0)
    assert (ids(taken), taken.dropped, taken.aborted) == ([1, 3, 4, 5], 1, 1)
    assert balance(events) == Balance(6, 4, 2, 0)


def test_a_question_that_cannot_be_asked_is_not_aborted():
    flow, _, events = oversampled(Pool(seconds={0: 60}, unusable=(2,)))
    taken = step_of(flow, 0)
    assert (ids(taken), len(taken.unusable), taken.aborted) == ([1, 3, 4, 5], 1, 1)
    assert balance(events) == Balance(6, 4, 2, 0)


def test_a_question_is_aborted_before_it_begins():
    class SlowTask(Task):
        def train(self, index):
            if index == 5:
                time.sleep(0.5)
            return super().train(index)

    flow, pool, _ = oversampled(Pool(seconds={4: 60}))
    flow._asking._task = SlowTask()
    taken = step_of(flow, 0)
    assert (ids(taken), taken.aborted) == ([0, 1, 2, 3], 2)
    assert 5 not in [question for question, _ in pool.asked]


def test_an_asynchronous_run_goes_on_with_its_stragglers():
    streaming = resampling(schedule="streaming", budget={"ratio": 2.0})
    slow = Pool(seconds={0: 0.5, 3: 0.5})
    flow, pool, events = oversampled(slow, max_staleness=1, resampler=streaming)
    taken = [step_of(flow, step) for step in range(4)]
    # Six questions are under way: the batch and half of another.
    assert (ids(taken[0]), pool.most) == ([1, 2, 4, 5], 6)
    # The stragglers would be too old in a third batch: the second one waits for them.
    assert [question for question in ids(taken[1]) if question < 6] == [0, 3]
    assert taken[1].staleness["0"] == 1
    trained = [question for of_step in taken for question in ids(of_step)]
    assert sorted(trained) == list(range(16))  # none is lost
    assert [of_step.aborted for of_step in taken] == [0] * 4
    assert balance(events) == Balance(16, 16, 0, 0)


def test_a_bug_is_raised_and_not_aborted():
    flow, _, _ = oversampled(Pool(buggy=(0,)))
    with pytest.raises(IndexError, match="a bug"):
        step_of(flow, 0)


@pytest.mark.parametrize(
    ("share", "questions", "asked"), [(0.0, 10, 10), (0.1, 10, 11), (0.25, 10, 13), (0.01, 4, 5)]
)
def test_the_share_is_rounded_up(share, questions, asked):
    engine = {"weight_transfer": "shared_memory"}
    made = recipe(questions_per_step=questions, rollout={"oversample": share, "engine": engine})
    assert made.asked_together == asked


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"max_staleness": 1, "sync_at": "batch"},
            r"rollout\.oversample=0\.5: must be 0 with sync_at='batch'",
        ),
        ({"max_staleness": 1}, r"resampler\.schedule='batch' waits for the stragglers"),
        ({"dynamic_sampling": True}, r"rollout\.oversample=0\.5: must be 0 with dynamic_sampling"),
    ],
)
def test_what_makes_no_sense_together_is_refused(fields, why):
    with pytest.raises(Exception, match=why):
        oversampled(**fields)
