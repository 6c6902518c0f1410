"""A Ray session as a command opens it: what it prints, what it keeps, and how it says a loss."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import ray

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.session import ray_session

pytestmark = [pytest.mark.engine]

SESSION = """
import os, sys
from pathlib import Path

import ray

from axpo.config import load_recipe
from axpo.session import ray_session


class Talker:
    def __repr__(self):
        return "talker-3"

    def talk(self):
        print("to stdout")
        print("to stderr", file=sys.stderr)

    def end(self):
        os._exit(1)


with ray_session(load_recipe("debug"), logs=Path(sys.argv[1])):
    talker = ray.remote(Talker).options(num_cpus=0.1).remote()
    ray.get(talker.talk.remote(), timeout=60)
    print("driver")
    ray.get(talker.end.remote(), timeout=60)
"""


def test_actors_print_into_the_run_and_their_loss_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "logs")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Nothing of the actor is on the console, and no warning of the token that is kept.
    assert done.stdout == "driver\n"
    assert "to std" not in done.stderr
    assert "Token authentication" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("rollout_workers.causes.ActorsLost: its process ")
    (file,) = (tmp_path / "logs").glob("talker-3-*.log")
    assert sorted(file.read_text().splitlines()) == ["to stderr", "to stdout"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "nowhere.invalid:6379"])
def test_an_address_that_nobody_listens_at_is_refused_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by another test's session
    began = time.monotonic()
    with (
        pytest.raises(AxpoError, match=re.escape(f"RAY_ADDRESS={address}: no cluster answers")),
        ray_session(load_recipe("debug")),
    ):
        pass
    assert time.monotonic() - began < 60  # Ray itself tries for minutes
