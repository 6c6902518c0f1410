"""The learner's driver side, over ranks that only write down what they are asked."""

import threading
import time
from types import SimpleNamespace

from learner.learner import Learner


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
