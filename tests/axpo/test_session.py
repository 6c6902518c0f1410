"""A Ray session as a command opens it: what it prints, what it keeps, and how it says a loss."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
