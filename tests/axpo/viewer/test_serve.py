"""The viewer as a process: its port, its address, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.viewer.serve import serve
from tests.axpo.helpers import decode
from tests.axpo.viewer.made_runs import answered, write_run


@pytest.fixture
def viewer(tmp_path):
    run = write_run(tmp_path, "a", steps=3, ended=False)
    command = [sys.executable, "-u", "-m", "axpo.cli", "view", str(run), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--cache", str(tmp_path / "cache")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    process.address = process.stdout.readline().removeprefix("open ").strip()
    process.run = run
    yield process
    process.kill()
    process.wait()


def page_with(client: httpx.Client, address: str, text: str) -> str:
    """Return a page as soon as it has a text."""
    deadline = time.monotonic() + 30
    while text not in (html := client.get(address).text):
        assert time.monotonic() < deadline, html
        time.sleep(0.2)
    return html


def test_it_serves_follows_and_ends_with_its_child(viewer):
    with httpx.Client(follow_redirects=True, timeout=20) as client:
        assert client.get(viewer.address).status_code == 200
        groups = viewer.address.replace("/?", "/r/0/groups?")
        page_with(client, groups, "12 groups")
        RunDirectory.open(viewer.run).save_groups(4, [answered("n", "x", (1.0,))], decode)
        page_with(client, groups, "13 groups")
    children = psutil.Process(viewer.pid).children(recursive=True)
    assert children
    # As a terminal does it: to all of them.
    os.killpg(viewer.pid, signal.SIGINT)
    assert viewer.wait(timeout=20) == 0
    assert "Traceback" not in viewer.stdout.read()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_its_child_does_not_outlive_a_kill(viewer):
    children = psutil.Process(viewer.pid).children(recursive=True)
    viewer.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_only_this_machine_is_served(viewer):
    port = int(viewer.address.split(":")[2].split("/")[0])
    listening = {
        one.laddr.ip
        for one in psutil.Process(viewer.pid).net_connections("tcp")
        if one.laddr.port == port and one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AxpoError, match=f"port {port} is taken"):
            serve([write_run(tmp_path, "a", steps=1)], port, tmp_path / "cache")
