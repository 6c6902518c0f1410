"""A judge that is served while answers are judged."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from axpo.errors import AxpoError
from axpo.evaluation import local_judge
from axpo.tasks.judge import judges

SERVER = "tests.axpo.evaluation.judge_server"


def children():
    return [child for child in psutil.Process().children() if SERVER in " ".join(child.cmdline())]


def test_a_local_judge_serves_while_it_is_open_and_is_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.setattr(local_judge, "_SERVER", SERVER)
    spec = {"name": "local", "model": "models/mine", "start_s": 30, "cache": str(tmp_path)}
    local = judges.parse(spec)
    assert local.describe().startswith("models/mine (local), prompt ")
    with local.opened() as judge:
        assert len(children()) == 1
        assert judge.concurrency_limit == 32
        assert judge.judge("How many?", ["seven"], "it is 7").right is True
        assert judge.judge("How many?", ["seven"], "it is 8").right is False
    assert children() == []
    # Kept apart from other models, all of which are called "judge" by their server.
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.rglob("*.json"))) == 2
    other = judges.parse(spec | {"model": "others/mine"})
    with other.opened() as judge:
        judge.judge("How many?", ["seven"], "it is 7")
    assert sorted(found.name[:5] for found in tmp_path.iterdir()) == ["mine-", "mine-"]
    with pytest.raises(RuntimeError, match="must be opened first"):
        local.judge("?", ["x"], "y")


def test_a_local_judge_that_cannot_start_is_one_line(monkeypatch):
    monkeypatch.setattr(local_judge, "_SERVER", SERVER)
    local = judges.parse({"name": "local", "model": "broken", "start_s": 30})
    message = "judge: broken: its server ended with status 1: ValueError: no such model"
    with pytest.raises(AxpoError, match=message), local.opened():
        pass
    assert children() == []


def test_a_local_judge_without_its_folder_is_refused_before_anything_starts():
    with pytest.raises(AxpoError, match=r"judge: \./none: no model folder there"):
        judges.parse({"name": "local", "model": "./none"}).check()
    judges.parse({"name": "local", "model": "axpo/models/qwen3-vl-tiny"}).check()


def test_a_server_ends_if_judging_fails(monkeypatch):
    monkeypatch.setattr(local_judge, "_SERVER", SERVER)
    local = judges.parse({"name": "local", "model": "mine", "start_s": 30})
    with pytest.raises(KeyboardInterrupt), local.opened():
        raise KeyboardInterrupt
    assert children() == []


DRIVER = f"""
import time
from axpo.evaluation import local_judge
from axpo.tasks.judge import judges
local_judge._SERVER = "{SERVER}"
with judges.parse({{"name": "local", "model": "mine", "start_s": 30}}).opened():
    print("serving", flush=True)
    time.sleep(60)
"""


def test_a_server_ends_when_the_evaluation_is_killed():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout.readline() == "serving\n"
        (server,) = psutil.Process(driver.pid).children()
        driver.kill()
        driver.wait()
        # Gone, or a zombie of whoever inherits it.
        gone, alive = psutil.wait_procs([server], timeout=20)
        assert gone or alive[0].status() == psutil.STATUS_ZOMBIE
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
