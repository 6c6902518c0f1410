"""Versions, and the order of sleeping, updating, waking and sending. Nothing here runs on Ray."""

import pytest
from ray.exceptions import ActorDiedError

from axpo.training.policy import Policy
from learner.learner import RanksLost


class Calls(list):
    """A learner and a pool in one, which write down what they are asked.

    `dead` workers fail an update, and are gone after a check.
    """

    def __init__(self, workers=("a", "b"), dead=()):
        super().__init__()
        self.workers, self.dead, self.bring = list(workers), set(dead), None

    def join_with(self, bring):
        self.bring = bring

    def update(self, items):
        self.append("update")
        return {"loss": 1.0}

    def send_weights(self, workers, version):
        self.append((tuple(workers), version))
        if self.dead & set(workers):
            raise ActorDiedError()

    def check(self):
        self.append("check")
        self.workers = [worker for worker in self.workers if worker not in self.dead]

    def sleep(self):
        self.append("sleep")

    def wake(self, tag):
        self.append(f"wake {tag}")


def policy(calls, **options):
    return Policy(calls, calls, **options)


def test_versions_count_updates_and_a_replacement_gets_the_learners():
    calls = Calls()
    made = policy(calls)
    made.publish(5)  # a resume
    assert made.update(["item"]) == {"loss": 1.0}
    calls.bring("c")
    made.publish()
    assert made.update([]) == {}  # nothing to train on is a version all the same
    assert calls == [(("a", "b"), 5), "update", (("c",), 6), (("a", "b"), 6)]
    assert made.version == 7


def test_an_engine_that_dies_during_an_update_leaves_the_others_a_whole_one():
    calls = Calls(dead={"b"})
    policy(calls).publish(1)
    assert calls == [(("a", "b"), 1), "check", (("a",), 1)]


def test_where_no_engine_is_to_blame_the_error_is_raised():
    calls = Calls()
    calls.dead, calls.check = {"a"}, lambda: None
    with pytest.raises(ActorDiedError):
        policy(calls).publish(1)


def test_a_replacement_that_ends_the_ranks_ends_the_wait_for_workers():
    calls = Calls()
    policy(calls)

    def lost(workers, version):
        raise RanksLost("weight update 1 failed")

    calls.send_weights = lost
    calls.fail = calls.append
    with pytest.raises(RanksLost):
        calls.bring("c")
    assert calls == ["weight update 1 failed"]


def test_lost_ranks_are_not_asked_again():
    calls = Calls()
    made = policy(calls)

    def lost(workers, version):
        calls.append("sent")
        raise RanksLost("weight update 1 failed")

    calls.send_weights = lost
    with pytest.raises(RanksLost):
        made.publish(1)
    assert calls == ["sent"]


def test_with_no_engine_left_the_replacements_bring_the_weights_themselves():
    calls = Calls(workers=())
    policy(calls).publish(1)
    assert calls == []


def test_colocated_engines_sleep_during_the_update_and_get_weights_before_their_cache():
    calls = Calls()
    made = policy(calls, colocated=True)
    made.publish(0)
    made.update(["item"])
    made.publish()
    assert calls == [
        (("a", "b"), 0),
        "sleep",
        "update",
        "wake weights",
        (("a", "b"), 1),
        "wake kv_cache",
    ]
