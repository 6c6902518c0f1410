"""Groups that teach nothing are set aside, and other questions are asked, round by round."""

import numpy as np

from axpo.record.ledger import Balance, balance
from axpo.training.cursor import load_cursor
from tests.axpo.training.local import Pool, ids, start, step_of


def set_aside(taken):
    """Return the questions that dynamic sampling set aside."""
    return [int(group.question.id) for group in taken.uninformative]


def test_dynamic_sampling_asks_other_questions_for_those_that_teach_nothing():
    # Round 1: 0 to 3, of which 1 (all right) and 2 (all wrong, not forked under grpo) teach
    # nothing. Round 2: 4 and 5, of which 4. Round 3: 6.
    pool = Pool(easy=(1, 4), hard=(2,), seconds={0: 0.1, 5: 0.1})
    flow, _, events = start(pool, algorithm="grpo", dynamic_sampling=True)
    taken = step_of(flow, 0)
    assert ids(taken) == [0, 3, 5, 6]
    assert set_aside(taken) == [1, 2, 4]
    assert len(taken.finished) == 7
    assert sorted(pool.asked) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 2)]
    assert balance(events) == Balance(7, 4, 3, 0)
    reasons = {event["question"]: event["reason"] for event in events if "reason" in event}
    assert reasons == dict.fromkeys("124", "uninformative")


def test_a_failed_group_with_an_informative_resample_stays():
    # Both batches of four are all wrong; R = floor(0.5 * 4 * 3 / 2) * 2 = 6: three prefixes of two
    # continuations, of which question 1's come back short.
    flow, _, _ = start(Pool(hard=range(4)), dynamic_sampling=True)
    taken = step_of(flow, 0)
    assert ids(taken) == [0, 2, 4, 5]
    assert set_aside(taken) == [1, 3]


def test_dynamic_sampling_is_bounded():
    bounded = {"dynamic_sampling": True, "dynamic_sampling_factor": 1.5}
    flow, _, _ = start(Pool(easy=range(100)), algorithm="grpo", **bounded)
    taken = step_of(flow, 0)
    assert (ids(taken), len(set_aside(taken))) == ([], 10)  # its own four and 1.5 * 4 others
    flow.feed(1)
    assert flow.cursor.following == 14
    flow.close()


def test_without_dynamic_sampling_they_are_trained_on():
    flow, _, _ = start(Pool(easy=(1,), hard=(2,)), algorithm="grpo")
    taken = step_of(flow, 0)
    assert (ids(taken), set_aside(taken)) == ([0, 1, 2, 3], [])


def test_a_resume_between_steps_of_dynamic_sampling_asks_the_same_with_the_same_seeds(tmp_path):
    chosen = {"algorithm": "grpo", "dynamic_sampling": True}
    uninformative = {"easy": (1, 5, 6, 13), "hard": (2, 9)}
    uninterrupted, pool, _ = start(Pool(**uninformative), **chosen)
    expected = [ids(step_of(uninterrupted, step)) for step in range(3)]
    first, _, _ = start(Pool(**uninformative), **chosen)
    step_of(first, 0)
    first.cursor.save(tmp_path)
    again, other, _ = start(Pool(**uninformative), load_cursor(tmp_path), **chosen)
    for step in (1, 2):
        assert ids(step_of(again, step)) == expected[step]
    assert sorted(other.asked) == sorted(pool.asked)[-len(other.asked) :]
    assert uninterrupted.cursor == again.cursor


def test_dynamic_sampling_keeps_the_staleness_bound():
    rng = np.random.default_rng(0)
    seconds = {i: float(rng.uniform(0, 0.03)) for i in range(200)}
    pool = Pool(seconds, easy=range(0, 200, 3))
    flow, _, events = start(pool, steps=8, max_staleness=1, algorithm="grpo", dynamic_sampling=True)
    taken = [step_of(flow, step) for step in range(8)]
    assert [len(batch.groups) for batch in taken] == [4] * 8
    assert max(age for batch in taken for age in batch.staleness.values()) <= 1
    trained = [index for batch in taken for index in ids(batch)]
    aside = [index for batch in taken for index in set_aside(batch)]
    assert all(index % 3 for index in trained)
    assert not any(index % 3 for index in aside)
    assert len(set(trained)) == 32
    balanced = balance(events)
    assert (balanced.trained, balanced.dropped) == (32, len(aside))
