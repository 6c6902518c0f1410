"""What a person is told while actors start, and when they are lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from axpo.config import load_recipe
from axpo.placement import make_plan, uniform
from axpo.training.losses import Losses
from axpo.training.starting import Starting
from axpo.training.telling import Telling

RUN = Path("runs/a")


def losses(first=0):
    """Return `Losses`, the events that it passed on, what it said, and why it stopped the run."""
    events, said, stopped = [], [], []
    made = Losses(lambda event, **fields: events.append(event), said.append, first, RUN)
    made.stop = stopped.append
    made.nodes = {"engine 0": "10.0.0.2", "engine 1": "10.0.0.3"}
    return made, events, said, stopped


def lose(made, why, place=0, failures=1):
    made.log("worker lost", worker=place, place=place, why=why, failures=failures)


def test_a_lost_worker_is_said_at_once_with_node_and_cause():
    made, events, said, _ = losses()
    lose(made, "OSError: /dev/shm/psm_1: no such file", place=1)
    made.log("worker serves", worker=2, place=1)
    assert events == ["worker lost", "worker serves"]
    assert said == [
        "engine 1 on 10.0.0.3 was lost: OSError: /dev/shm/psm_1: no such file "
        "(loss 1; what it printed: runs/a/logs)",
        "engine 1 on 10.0.0.3 serves again",
    ]


def test_the_first_workers_of_a_run_are_not_said_to_serve_again():
    made, _, said, _ = losses()
    made.log("worker serves", worker=0, place=0)
    assert said == []


def test_two_losses_by_one_cause_before_the_first_step_stop_the_run():
    made, _, _, stopped = losses()
    lose(made, "OSError: /psm_3f2a11bc: no such file", place=0)
    lose(made, "its node was lost", place=0)
    assert stopped == []
    # Another place, and another number in the message: the same cause.
    lose(made, "OSError: /psm_99aa11bc: no such file", place=1)
    (why,) = stopped
    assert why.startswith("two engines were lost by the same cause before the first step: OSError")


@pytest.mark.parametrize("first", [0, 6])
def test_after_the_first_step_losses_are_replaced_as_often_as_the_recipe_says(first):
    made, _, _, stopped = losses(first)
    made.log("trained", question="q0", step=first)  # its weights are not sent yet
    lose(made, "TimeoutError: no answer")
    made.log("trained", question="q1", step=first + 1)
    lose(made, "TimeoutError: no answer")
    assert stopped == []
    made, _, _, stopped = losses(first)
    made.log("trained", question="q0", step=first)
    lose(made, "TimeoutError: no answer")
    lose(made, "TimeoutError: no answer")
    assert len(stopped) == 1


@pytest.fixture
def two_nodes():
    """Return a plan: the engines on the second node, all else on the first."""
    settings = ["learner.gpus_per_rank=1", "rollout.gpus_per_worker=1", "rollout.workers=2"]
    settings += ["rollout.engine.weight_transfer=nccl", "learner.ranks=2"]
    return make_plan(load_recipe("debug", settings), uniform(2, 2, 8))


def test_a_start_says_where_everything_stands_and_what_it_waits_for(two_nodes):
    said = []
    starting = Starting(said.append)
    assert starting.awaited() == "the nodes"
    starting.placed(two_nodes)
    assert said[0] == "starting on 2 nodes:"
    assert [line.split() for line in said[1:4]] == [
        ["node", "GPU", "who"],
        ["node", "1", "0", "rank", "0"],
        ["node", "1", "1", "rank", "1"],
    ]
    assert "rank 0, rank 1" in starting.awaited()
    starting.is_there("tool server")
    starting.is_there("rank")
    assert starting.awaited() == "engine 0, engine 1 on node 2"
    starting.log("worker serves", worker=0, place=0)
    assert starting.awaited() == "engine 1 on node 2"
    starting.log("worker serves", worker=1, place=1)
    assert starting.awaited() == "the resampler"


def test_a_start_that_takes_long_says_again_what_it_waits_for(two_nodes):
    said = []
    starting = Starting(said.append)
    starting.placed(two_nodes)
    starting.is_there("tool server")
    starting.is_there("rank")
    said.clear()
    with starting.reminding(seconds=0.05):
        until = time.monotonic() + 5
        while not said and time.monotonic() < until:
            time.sleep(0.01)
    assert said[0] == "waiting for engine 0, engine 1 on node 2 (0 s)"
    count = len(said)
    time.sleep(0.15)
    assert len(said) == count


def test_one_node_takes_one_line():
    said = []
    telling = Telling(lambda event, **fields: None, said.append, 0, RUN)
    telling.placed(make_plan(load_recipe("debug"), uniform(1, 0, 8)))
    assert len(said) == 1
    assert said[0].startswith("starting on node 1: engine 0, rank 0")
