"""Raylets with file systems of their own: which of them may take part in a run.

Each raylet runs in a mount namespace. Every one has the folder `shared`; `own` is a file system of
its own; `absent` has no model, and `bare` no AXPO.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.placement import Bundle, Node, Plan, Seat, inspect_nodes, inspection
from axpo.placement.reserve import ray_cluster

DEMO = "deploy/recipes/demo.yaml"
RAYLETS = ("whole", "absent", "bare")


def can_unshare():
    return not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode


pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(not can_unshare(), reason="needs mount namespaces"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("nodes")
    for name in ("shared", "own", "model", "empty"):
        (root / name).mkdir()
    (root / "model" / "config.json").write_text("{}")
    return root


def start(address, kind, folders):
    """Start a raylet in a mount namespace; its resource named `kind` says which one it is."""
    # Ray's sockets too: raylets that start side by side would choose the same names.
    hidden = [f"mount -t tmpfs none {folder}" for folder in (f"{folders}/own", "/tmp/ray")]
    if kind == "absent":
        hidden.append(f"mount --bind {folders}/empty {folders}/model")
    if kind == "bare":
        hidden.append(f"mount --bind {folders}/empty {Path('axpo').resolve()}")
    ray_start = Path(sys.executable).with_name("ray")
    command = (
        f"exec {ray_start} start --address={address} --num-cpus=2 --block "
        f"--object-store-memory=100000000 --resources='{{\"{kind}\": 1}}'"
    )
    script = " && ".join([*hidden, command])
    # As the head does: a token that lies in the home folder would switch tokens on.
    environment = {"RAY_AUTH_MODE": "disabled"} | dict(os.environ)
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def raylets(folders):
    """Return the nodes by what they are; `driver` is the head's."""
    ray.shutdown()
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
            "resources": {"driver": 1},
        },
    )
    started = [start(made.address, kind, folders) for kind in RAYLETS]
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    try:
        until = time.monotonic() + 60
        while len(ray.nodes()) < 4:
            assert time.monotonic() < until
            time.sleep(0.2)
        kinds = {
            kind: node["NodeID"]
            for node in ray.nodes()
            for kind in node["Resources"]
            if kind in (*RAYLETS, "driver")
        }
        by_id = {node.id: node for node in ray_cluster().nodes}
        yield {kind: by_id[node] for kind, node in kinds.items()}
    finally:
        ray.shutdown()
        for process in started:
            # The raylet and its agents, which are all in this session.
            subprocess.run(["kill", "--", f"-{process.pid}"], capture_output=True)
            process.wait(30)
        made.shutdown()


def plan(rank, engine, tools):
    """Return a plan of one rank, one engine and one tool server."""
    bundles = (Bundle(rank, 1, ()), Bundle(engine, 1, ()), Bundle(tools, 1, ()))
    seats = [Seat(role, 0, 1, 0, (i,)) for i, role in enumerate(("rank", "engine", "tool server"))]
    return Plan(bundles, tuple(seats))


def inspect(folders, rank, engine, *changes, run="shared", tools=None):
    recipe = load_recipe(DEMO, changes)
    made = plan(rank, engine, tools or rank)
    inspect_nodes(made, recipe, [str(folders / "model")], str(folders / run))


def refusal(folders, rank, engine, *changes, run="shared", tools=None):
    began = time.monotonic()
    with pytest.raises(AxpoError) as caught:
        inspect(folders, rank, engine, *changes, run=run, tools=tools)
    assert time.monotonic() - began < 120
    return str(caught.value)


def test_nodes_that_share_the_run_folder_take_part(raylets, folders):
    inspect(folders, raylets["whole"], raylets["driver"])
    assert os.listdir(folders / "shared") == []  # the token is gone


def test_a_run_folder_on_one_node_only_is_refused(raylets, folders, monkeypatch):
    monkeypatch.setattr(inspection, "SHARED_S", 1.0)
    whole, driver = raylets["whole"], raylets["driver"]
    message = refusal(folders, whole, driver, run="own")
    # What rank 0's node wrote is seen by nobody else.
    lines = message.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["the driver", driver.name]
    assert all(
        "does not see what rank 0's node wrote into the run folder" in line for line in lines
    )


def test_a_model_on_one_node_only_is_refused(raylets, folders):
    absent = raylets["absent"]
    message = refusal(folders, raylets["driver"], absent)
    assert message == f"{absent.name}: model folder {folders}/model: config.json is missing"


def test_a_node_without_the_environment_is_refused(raylets, folders):
    bare = raylets["bare"]
    for rank, engine in ((raylets["driver"], bare), (bare, raylets["driver"])):
        message = refusal(folders, rank, engine)
        assert message.startswith(f"{bare.name}: lacks AXPO's environment (")
        assert "axpo" in message
        assert "\n" not in message


def test_a_node_of_tool_servers_needs_the_environment_but_no_model(raylets, folders):
    driver, bare = raylets["driver"], raylets["bare"]
    message = refusal(folders, driver, driver, tools=bare)
    assert message.startswith(f"{bare.name}: lacks AXPO's environment (")
    assert "\n" not in message
    inspect(folders, driver, driver, tools=raylets["absent"])


def test_a_wrong_interface_is_refused(raylets, folders):
    message = refusal(folders, raylets["driver"], raylets["whole"], "network.interface=eht0")
    assert f"{raylets['driver'].name}: " in message
    assert "network.interface='eht0': " in message


def test_a_wrong_interface_is_refused_on_the_drivers_own_node(raylets, folders):
    message = refusal(folders, raylets["driver"], raylets["driver"], "network.interface=eht0")
    assert message.startswith(f"{raylets['driver'].name}: network.interface='eht0': ")
    inspect(folders, raylets["driver"], raylets["driver"], "network.interface=lo")


def test_a_port_that_is_taken_is_refused(raylets, folders):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        for engine in (raylets["whole"], raylets["driver"]):
            message = refusal(folders, raylets["driver"], engine, f"network.port={port}")
            assert message == (
                f"{raylets['driver'].name}: network.port={port}: Address already in use"
            )


def test_an_address_that_nobody_reaches_is_refused(raylets, folders):
    message = refusal(folders, raylets["driver"], raylets["whole"], "network.address=127.0.0.99.x")
    assert f"{raylets['whole'].name}: cannot reach rank 0 at 127.0.0.99.x:" in message


def test_a_node_that_starts_no_process_is_given_up_in_time(raylets, folders, monkeypatch):
    monkeypatch.setattr(inspection, "DEADLINE_S", 1.0)
    gone = Node("10.0.0.9", 1, 0, "a" * 56)
    message = refusal(folders, raylets["driver"], gone)
    assert message.startswith("10.0.0.9: ")
