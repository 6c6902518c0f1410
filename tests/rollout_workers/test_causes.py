"""What is said of actors that are lost, from the errors of a real Ray."""

from __future__ import annotations

import os
import signal
import time

import pytest
import ray
from ray.exceptions import RayError

from rollout_workers.causes import cause_of, same_cause

pytestmark = [pytest.mark.engine]


class Broken:
    def __init__(self, starts):
        if not starts:
            raise ValueError("no such model:\n  folder is empty")

    def raises(self):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")

    def asks(self, other):
        return ray.get(other.raises.remote())

    def ends(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def sleeps(self):
        time.sleep(60)


def told(call):
    with pytest.raises((RayError, TimeoutError)) as caught:
        ray.get(call, timeout=30)
    return cause_of(caught.value)


def test_the_cause_is_said_and_not_the_name_of_the_wrapper(cluster):
    actors = ray.remote(Broken).options(num_cpus=0.1)
    first, second = actors.remote(True), actors.remote(True)
    raised = "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"
    assert told(first.raises.remote()) == raised
    assert told(first.asks.remote(second)) == raised  # through another actor
    assert told(actors.remote(False).raises.remote()).startswith("ValueError: no such model:")
    ended = told(first.ends.remote())
    assert ended.startswith("its process was killed, or crashed (process ")
    assert "\n" not in ended
    ray.kill(second)
    assert "ray.kill" in told(second.raises.remote())


def test_an_error_without_words_is_said_by_its_kind():
    assert cause_of(TimeoutError()) == "no answer in time"
    assert cause_of(TimeoutError("no answer within 3 s")) == "no answer within 3 s"
    assert cause_of(KeyError()) == "KeyError"


def test_two_causes_are_the_same_if_only_numbers_differ():
    first = "OSError: /psm_3f2a11bc99: no such file (process 4711)"
    second = "OSError: /psm_77aa01bc1d: no such file (process 12)"
    assert same_cause(first) == same_cause(second)
    assert same_cause(first) != same_cause("OSError: /psm_3f2a11bc99: permission denied")
