"""A run whose ranks were lost goes on from its last checkpoint, once for each checkpoint."""

import pytest
from rich.console import Console

from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.training import run as runs
from learner.learner import RanksLost


@pytest.fixture
def directory(tmp_path):
    with RunDirectory.create("lost", {"name": "lost"}, tmp_path) as directory:
        yield directory


def checkpoint(directory, step, monkeypatch):
    """Let the directory have whole checkpoints up to a step."""
    monkeypatch.setattr(directory, "_last_undamaged", lambda: step)


def attempts(monkeypatch, *outcomes):
    """Let the attempts at a run end so, one after the other; return the steps they began at."""
    begun = []
    left = list(outcomes)

    def attempt(recipe, directory, first, console, since):
        begun.append(first)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(runs, "_train_run", attempt)
    return begun


LOST = RanksLost("weight update 7 failed (learner.sync_s=120)")


def test_a_run_goes_on_from_its_last_checkpoint(directory, monkeypatch):
    begun = attempts(monkeypatch, LOST, {"pass1_end": 0.5})
    checkpoint(directory, 4, monkeypatch)
    for step in range(1, 7):
        directory.log_metrics(step, {"loss": float(step)})
    console = Console(record=True, width=200)
    assert runs.train_run(None, directory, 0, console) == {"pass1_end": 0.5}
    assert begun == [0, 4]
    assert [row["step"] for row in directory.metrics()] == [1, 2, 3, 4]
    told = console.export_text()
    assert "weight update 7 failed" in told
    assert "Going on from step 4" in told


def test_the_same_checkpoint_is_gone_back_to_once(directory, monkeypatch):
    begun = attempts(monkeypatch, LOST, LOST)
    checkpoint(directory, 0, monkeypatch)
    with pytest.raises(AxpoError, match=r"update 7 failed .* second time after step 0.*--resume"):
        runs.train_run(None, directory, 0, Console(quiet=True))
    assert begun == [0, 0]


def test_a_run_that_gets_on_may_lose_its_ranks_again(directory, monkeypatch):
    begun = attempts(monkeypatch, LOST, LOST, None)
    steps = iter([4, 8])
    monkeypatch.setattr(directory, "_last_undamaged", lambda: next(steps))
    assert runs.train_run(None, directory, 0, Console(quiet=True)) is None
    assert begun == [0, 4, 8]
