"""The learner's driver side, over ranks that only write down what they are asked."""

import re
import threading
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

import learner.learner
from learner.config import LearnerConfig, LoraSettings, Serving
from learner.learner import Learner, RanksLost
from learner.receivers import Receivers
from rollout_workers.images import ImagesLost


def test_collective_calls_of_several_threads_reach_every_rank_in_one_order(monkeypatch):
    def rank():
        asked: list[int] = []

        def remote(method, number):
            asked.append(number)
            time.sleep(0.001)  # another thread's turn

        return SimpleNamespace(asked=asked, call=SimpleNamespace(remote=remote))

    learner = Learner.__new__(Learner)
    learner._order, learner._ranks, learner._lost = threading.Lock(), [rank(), rank()], ""
    monkeypatch.setattr(learner, "_wait", lambda what, references, within: references)
    threads = [threading.Thread(target=learner._all, args=("save", number)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (rank.asked for rank in learner._ranks)
    assert sorted(first) == list(range(40))
    assert first == second


ADAPTERS = LearnerConfig(lora=LoraSettings(sync="adapters"))
ENGINE_GONE = RayTaskError("call", "RuntimeError: engine is gone", RuntimeError("engine is gone"))
ENGINE_DIED = RayTaskError("call", "ActorDiedError: an engine", ActorDiedError())


@pytest.mark.parametrize(
    ("config", "transfer", "error", "lost"),
    [
        # The ranks have answered, and were in no collective with the engines.
        (LearnerConfig(), "shared_memory", ENGINE_GONE, False),
        (LearnerConfig(), "shared_memory", ENGINE_DIED, False),
        (ADAPTERS, "nccl", ENGINE_GONE, False),
        # They were.
        (LearnerConfig(), "nccl", ENGINE_GONE, True),
        (LearnerConfig(), "sparse_nccl", ENGINE_GONE, True),
        (LearnerConfig(), "ipc", ENGINE_DIED, True),
        # They have not answered.
        (LearnerConfig(), "shared_memory", TimeoutError("sync_s=120"), True),
        (ADAPTERS, "nccl", TimeoutError("sync_s=120"), True),
        # One of them is dead.
        (LearnerConfig(), "shared_memory", ActorDiedError(), True),
    ],
)
def test_ranks_are_ended_if_they_may_wait_for_ever(monkeypatch, config, transfer, error, lost):
    killed = []
    monkeypatch.setattr(learner.learner.ray, "kill", killed.append)
    monkeypatch.setattr(Receivers, "hold", lambda engines: None)
    ranks = [SimpleNamespace(call=SimpleNamespace(remote=lambda *a: None))] * 2
    made = Learner.__new__(Learner)
    made._order, made._ranks, made._lost = threading.Lock(), ranks, ""
    made.config, made._serving = config, Serving(weight_transfer=transfer)

    def wait(what, references, within):
        assert within == "sync_s"
        raise error

    died = isinstance(error, ActorDiedError) and not isinstance(error, RayTaskError)
    ended = {1: "its node was lost"} if died else {}
    monkeypatch.setattr(learner.learner, "_ended", lambda calls: ended)
    monkeypatch.setattr(made, "_wait", wait)
    monkeypatch.setattr(made, "_address", lambda what: ("host", 1))
    with pytest.raises(RanksLost if lost else type(error)) as caught:
        made.send_weights(["engine"], 4)
    assert killed == (ranks if lost else [])
    if lost:
        of_rank = "rank 1 of the learner ended during send_weights: its node was lost"
        why = of_rank if died else "update 4 failed: "
        assert why in str(caught.value)
        with pytest.raises(RanksLost, match=re.escape(str(caught.value))):
            made.finish_save()
    else:
        assert caught.value is error


@pytest.mark.parametrize(
    ("outcomes", "ended"),
    [
        ([ENGINE_GONE, 1], []),
        ([ENGINE_DIED, ENGINE_DIED], []),  # an engine's death, which ranks have met
        ([ENGINE_GONE, ActorDiedError()], [1]),  # rank 0 has lost its connection to rank 1
        ([ActorDiedError(), None], [0]),  # rank 1 waits for rank 0
    ],
)
def test_a_rank_that_is_gone_is_told_from_one_that_raised(monkeypatch, outcomes, ended):
    def get(outcome):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def wait(calls, num_returns, timeout):
        return [call for call in calls if call is not None], []

    monkeypatch.setattr(learner.learner.ray, "get", get)
    monkeypatch.setattr(learner.learner.ray, "wait", wait)
    assert list(learner.learner._ended(outcomes)) == ended


def test_ranks_are_ended_if_one_cannot_fetch_its_images(monkeypatch):
    """The others wait for it in a collective, and would do so for ever."""
    killed = []
    monkeypatch.setattr(learner.learner.ray, "kill", killed.append)
    ranks = [SimpleNamespace(call=SimpleNamespace(remote=lambda *a: None))] * 2
    made = Learner.__new__(Learner)
    made._order, made._ranks, made._lost = threading.Lock(), ranks, ""
    error = RayTaskError("call", "...", ImagesLost("images of tools are lost: ObjectLostError"))

    def wait(what, references, within):
        raise error.as_instanceof_cause()

    monkeypatch.setattr(made, "_wait", wait)
    for _ in range(2):
        with pytest.raises(RanksLost, match=r"^update: ImagesLost: .*ObjectLostError$"):
            made._all("update")
    assert killed == ranks
