"""When a rank connects to engines, and what it does if that fails. Nothing is sent here."""

import pytest
from torch import nn

from learner.config import LearnerConfig, LoraSettings, Serving
from learner.receivers import Receivers
from learner.senders import Adapters
from learner.sync import WeightSync

ADDRESS = ("host", 1)


class Sender:
    def __init__(self, log, engines):
        self.log, self.engines = log, engines

    def send_weights(self):
        self.log.append(f"send {self.engines}")

    def shutdown(self):
        self.log.append(f"shutdown {self.engines}")


def sync(monkeypatch, log, failing=()):
    made = WeightSync(nn.Linear(1, 1), LearnerConfig(), Serving(weight_transfer="nccl"), rank=0)

    def connect(receivers, address):
        log.append(f"connect {receivers.handles}")
        if set(receivers.handles) & set(failing):
            raise RuntimeError("no rendezvous")
        return Sender(log, receivers.handles)

    monkeypatch.setattr(made, "_new_sender", connect)
    return made


def test_engines_are_connected_once_and_anew_if_one_was_replaced(monkeypatch):
    log = []
    made = sync(monkeypatch, log)
    for engines in (["a", "b"], ["a", "b"], ["a", "c"]):
        made.send(engines, 1, ADDRESS)
    assert log == [
        "connect ['a', 'b']",
        "send ['a', 'b']",
        "send ['a', 'b']",
        "shutdown ['a', 'b']",
        "connect ['a', 'c']",
        "send ['a', 'c']",
    ]


def test_a_connection_that_failed_is_made_again(monkeypatch):
    log, failing = [], {"a"}
    made = sync(monkeypatch, log, failing)
    with pytest.raises(RuntimeError, match="no rendezvous"):
        made.send(["a"], 1, ADDRESS)
    failing.clear()
    monkeypatch.setattr(made, "_new_sender", lambda receivers, address: Sender(log, ["a"]))
    made.send(["a"], 1, ADDRESS)
    assert log == ["connect ['a']", "send ['a']"]


def test_adapters_alone_need_no_connection_whatever_the_backend():
    config = LearnerConfig(lora=LoraSettings(sync="adapters"))
    made = WeightSync(nn.Linear(1, 1), config, Serving(weight_transfer="nccl"), rank=0)
    assert isinstance(made._new_sender(Receivers(["engine"]), ADDRESS), Adapters)


def test_each_engine_gets_ranks_of_its_own(monkeypatch):
    """Behind the sender's rank 0: three engines of two processes have 1 2, 3 4 and 5 6."""
    told = []

    class Handle:
        class init_weight_transfer:
            @staticmethod
            def remote(info):
                told.append(info)

    receivers = Receivers([Handle, Handle, Handle], ranks_each=2)
    monkeypatch.setattr(receivers, "wait", lambda calls: calls)
    receivers.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    assert receivers.ranks == 6
    assert [info["rank_offset"] for info in told] == [1, 3, 5]
    receivers.init_weight_transfer_engine({"packed": True})
    assert told[3:] == [{"packed": True}] * 3
