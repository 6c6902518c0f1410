"""Work in processes with limits: whose fault each end is."""

import pytest

from axpo.limited.client import Limited, OverLimits

SCRIPT = """
import os, signal
from axpo.limited.server import serve

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
    return request

serve(work)
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    script = tmp_path_factory.mktemp("limited") / "script.py"
    script.write_text(SCRIPT)
    limited = Limited("work", str(script))
    yield limited
    limited.close()


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
