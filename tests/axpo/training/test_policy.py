"""Versions, and the order of sleeping, updating, waking and sending. Nothing here runs on Ray."""

import pytest
from ray.exceptions import ActorDiedError

from axpo.training.policy import Policy
from learner.learner import RanksLost
from rollout_workers.fleet import Asleep


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

    def reclaim_memory(self):
        self.append("reclaim")

    def release_memory(self):
        self.append("release")

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


def test_colocated_engines_and_ranks_never_have_all_of_their_memory_at_once():
    calls = Calls()
    made = policy(calls, colocated=True)  # the engines sleep, the ranks have loaded
    made.publish(0)
    served = ["wake weights", (("a", "b"), 0), "release", "wake kv_cache"]
    assert calls == served
    made.update(["item"])
    made.publish()
    learned = ["sleep", "reclaim", "update"]
    assert calls[4:] == [*learned, "wake weights", (("a", "b"), 1), "release", "wake kv_cache"]


def test_colocated_engines_sleep_during_a_checkpoint():
    calls = Calls()
    made = policy(calls, colocated=True)
    made.publish(0)
    calls.clear()
    with made.learner_alone() as learner:
        learner.append("save")
    awake = ["wake weights", (("a", "b"), 0), "release", "wake kv_cache"]
    assert calls == ["sleep", "reclaim", "save", *awake]


def test_a_replacement_of_a_colocated_engine_joins_only_while_the_engines_are_awake():
    calls = Calls()
    made = policy(calls, colocated=True)
    with pytest.raises(Asleep):
        calls.bring("c")
    made.publish(0)
    calls.clear()
    calls.bring("c")
    assert calls == [(("c",), 0)]


def test_a_checkpoint_before_the_engines_serve_leaves_them_asleep():
    calls = Calls()
    made = policy(calls, colocated=True)
    with made.learner_alone() as learner:
        learner.append("save")
    assert calls == ["save"]


def test_engines_on_devices_of_their_own_go_on_during_a_checkpoint():
    calls = Calls()
    with policy(calls).learner_alone() as learner:
        learner.append("save")
    assert calls == ["save"]


def test_engines_catch_up_only_if_they_are_behind():
    calls = Calls()
    made = policy(calls)
    made.publish(0)
    made.catch_up()
    assert calls == [(("a", "b"), 0)]
    made.update(["item"])
    made.catch_up()
    assert calls[1:] == ["update", (("a", "b"), 1)]
