"""Work in processes with limits: whose fault each end is, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from axpo.limited.client import Limited, OverLimits

SCRIPT = """
import os, signal
from axpo.limited import server
from axpo.limited.server import serve

server.CPU_S = 1

def work(request):
    match request:
        case "raise": raise OSError("x")
        case "memory": return len([b"x" * (1 << 20) for _ in range(1000)])
        case "recursion": return work(request)
        case "large": return "x" * 10_000
        case "no json": return {1, 2}
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "exit": os._exit(0)
        case "killed": os.kill(os.getpid(), signal.SIGKILL)
        case "endless":
            while True: pass
    return request

serve(work)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    script = tmp_path_factory.mktemp("limited") / "script.py"
    script.write_text(SCRIPT)
    return str(script)


@pytest.fixture(scope="module")
def limited(script):
    limited = Limited("work", script)
    yield limited
    limited.close()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_result_is_json(limited):
    request = {"a": [1, None, "\ud83d"], "b": "x" * 1000}
    assert limited.ask(request) == request


@pytest.mark.parametrize(
    "request_", ["raise", "memory", "recursion", "large", "no json", "crash", "exit"]
)
def test_what_an_input_does_to_its_process_is_its_own_fault(limited, request_):
    with pytest.raises(OverLimits):
        limited.ask(request_)
    assert limited.ask("next") == "next"


def test_what_somebody_else_kills_is_not(limited):
    with pytest.raises(RuntimeError, match="the machine ended it"):
        limited.ask("killed")
    assert limited.ask("next") == "next"


def test_a_script_that_does_not_start_is_the_machines_fault(tmp_path):
    (tmp_path / "script.py").write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="has ended"):
        Limited("work", str(tmp_path / "script.py")).ask(1)


def test_what_is_killed_is_no_result_and_a_killed_server_is_replaced(limited):
    assert limited.ask("next") == "next"
    with ThreadPoolExecutor(1) as thread:
        work = thread.submit(limited.ask, "endless")
        wait_until(lambda: children(limited._child.pid))
        os.kill(children(limited._child.pid)[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the machine ended it"):
            work.result()
        work = thread.submit(limited.ask, "endless")
        server = limited._child
        wait_until(lambda: children(server.pid))
        server.kill()
        with pytest.raises(OverLimits):  # of another server
            work.result()
    assert limited.ask("next") == "next"


def test_a_frozen_server_is_replaced(tmp_path):
    (tmp_path / "frozen.py").write_text("import time; time.sleep(60)")
    limited = Limited("math", str(tmp_path / "frozen.py"), wait_s=0.3)
    with pytest.raises(TimeoutError, match=r"math: no reply for 0\.3 s"):
        limited.ask(1)
    assert limited._child is None


def test_no_secret_is_in_the_environment_of_the_work(monkeypatch, script):
    monkeypatch.setenv("TAVILY_API_KEY", "tvly-secret")
    limited = Limited("work", script)
    limited.ask("next")
    environment = Path(f"/proc/{limited._child.pid}/environ").read_bytes()
    limited.close()
    assert b"secret" not in environment
    assert b"PATH=" in environment


ORPHANS = """
import sys, threading, time
from pathlib import Path
from axpo.limited.client import Limited
limited = Limited("work", sys.argv[1])
threading.Thread(target=limited.ask, args=("endless",), daemon=True).start()
while not (child := limited._child):
    time.sleep(0.01)
children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
while not (busy := children.read_text().split()):
    time.sleep(0.01)
print(child.pid, *busy, flush=True)
time.sleep(60)
"""


def test_nothing_outlives_a_parent_that_is_killed(script):
    command = [sys.executable, "-c", ORPHANS, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_alive, pids)))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
