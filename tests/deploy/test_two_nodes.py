"""A run over two raylets: what its user sees if the node lacks AXPO, or is lost in mid-run.

The head has no CPUs, so everything but the driver is on the other node, which has a /dev/shm and a
folder of Ray's own. The run folder is on both.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
NODE_CPUS = 4


def can_unshare():
    return not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_unshare(), reason="needs mount namespaces"),
]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Cluster:
    """A head, and nodes in mount namespaces, by `ray start` with a token of their own."""

    def __init__(self, home):
        self.folder = tempfile.mkdtemp(prefix="axpo-")  # the paths of sockets must be short
        self.port = free_port()
        self.environment = dict(os.environ) | {
            "HOME": str(home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
        }
        self.nodes = []
        self.ray("get-auth-token", "--generate")
        self.ray(
            "start", "--head", f"--port={self.port}", "--num-cpus=0", f"--temp-dir={self.folder}",
            "--include-dashboard=false",
        )  # fmt: skip

    def ray(self, *arguments):
        """Run a command of Ray to its end."""
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        subprocess.run(
            ["ray", *arguments], env=environment, check=True, capture_output=True, timeout=120
        )

    def add(self, *hidden):
        """Start a node in which folders are empty; wait until it is there."""
        own = Path(self.folder) / "own"
        own.mkdir(exist_ok=True)
        mounts = [
            "mount -t tmpfs none /dev/shm",
            f"mount -t tmpfs none {own}",
            *(f"mount -t tmpfs none {folder}" for folder in hidden),
        ]
        start = (
            f"exec ray start --address=127.0.0.1:{self.port} --num-cpus={NODE_CPUS} --block "
            f"--temp-dir={own}"
        )
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        log = Path(self.folder) / f"node-{len(self.nodes)}.log"
        with log.open("w") as out:
            node = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c",
                 " && ".join([*mounts, start])],
                env=environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.nodes.append(node)
        until = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        return node

    def lose(self, node):
        """Kill all processes of a node at once."""
        subprocess.run(["pkill", "--signal", "KILL", "--ns", str(node.pid), "--nslist", "mnt"])
        node.wait(30)

    def axpo(self, *arguments, cwd):
        """Start a command; its output is one text."""
        return subprocess.Popen(
            ["axpo", *arguments], cwd=cwd, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def close(self):
        for node in self.nodes:
            if node.poll() is None:
                self.lose(node)
        # Only the processes of this cluster: other tests have their own.
        subprocess.run(["pkill", "--signal", "KILL", "--full", self.folder])
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    made = Cluster(home)
    yield made
    made.close()


def steps(run):
    file = run / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_node_without_axpo_is_named_before_anything_loads(cluster, tmp_path):
    cluster.add(Path("axpo").resolve())
    run = cluster.axpo(
        "train", "debug", "--set", f"logging.root={tmp_path}", "--run", "x", cwd=tmp_path
    )
    told, _ = run.communicate(timeout=300)
    assert run.returncode == 2, told
    # Long lines are broken between words.
    assert "AXPO's environment" in " ".join(told.split()), told
    assert "Traceback" not in told


def test_a_node_lost_in_mid_run_ends_it_with_the_way_to_go_on(cluster, tmp_path):
    node = cluster.add()
    run = cluster.axpo(
        "train", "debug", "--set", "steps=6", "--set", f"logging.root={tmp_path}", "--run", "lost",
        cwd=tmp_path,
    )  # fmt: skip
    until = time.monotonic() + 400
    while len(steps(tmp_path / "lost")) < 2:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.1)
    cluster.lose(node)
    began = time.monotonic()
    told, _ = run.communicate(timeout=300)
    seconds = time.monotonic() - began
    assert run.returncode == 2, told
    assert "Traceback" not in told
    assert "--resume" in told
    assert seconds < 90
    # Another node comes, and the run goes on.
    cluster.add()
    again = cluster.axpo("train", "--resume", str(tmp_path / "lost"), cwd=tmp_path)
    told, _ = again.communicate(timeout=400)
    assert again.returncode == 0, told
    assert set(steps(tmp_path / "lost")) == {0, 1, 2, 3, 4, 5, 6}
