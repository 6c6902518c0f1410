"""A process that is forked from a fork server, without vLLM."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

SCRIPT = """
import multiprocessing, os, sys
from rollout_workers import engine_process

def tell(queue):
    queue.put((os.environ.get("SET_LATER"), "csv" in sys.modules, os.getppid()))

if __name__ == "__main__":
    engine_process.MODULES = "csv"
    engine_process.prepare()
    os.environ["SET_LATER"] = "yes"
    context = engine_process._Context()
    queue = context.SimpleQueue()
    child = context.Process(target=tell, args=(queue,))
    child.start()
    later, imported, parent = queue.get()
    child.join(30)
    print(later, imported, parent != os.getpid(), child.exitcode, parent)
"""


def test_a_fork_has_what_the_server_imported_and_the_environment_of_its_starter(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *found, server = done.stdout.split()
    assert found == ["yes", "True", "True", "0"]
    # The server ends with the process that started it.
    until = time.monotonic() + 20
    while psutil.pid_exists(int(server)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(server))
