"""What a node is asked, and what is said of its answers. Nothing here runs on Ray."""

import socket

import pytest

from axpo.placement import nodes
from axpo.placement.nodes import Home, Request, Seen, differences, look
from learner.network import NetworkConfig

VERSIONS = {"axpo": "1", "torch": "2.13.0", "vllm": "0.32.0"}


def test_a_node_like_the_drivers_has_no_faults(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    seen = look(Request((str(tmp_path),), "lo"))
    assert seen.models == {str(tmp_path): {"config.json": 2}}
    assert {"torch", "transformers", "deepspeed"} <= set(seen.packages)
    assert differences(seen, seen) == []


def test_other_versions_are_named():
    there = Seen({**VERSIONS, "vllm": "0.31.0"} | {"torch": "2.13.0"})
    assert differences(Seen(VERSIONS), there) == ["has vllm 0.31.0, the driver 0.32.0"]
    missing = Seen({"axpo": "1", "torch": "2.13.0"})
    assert differences(Seen(VERSIONS), missing) == ["has vllm (none), the driver 0.32.0"]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ("No such file or directory", "No such file or directory"),
        ({"config.json": 700}, "model.safetensors is missing"),
        ({"config.json": 700, "model.safetensors": 9}, "model.safetensors has 9 bytes, the dri"),
    ],
)
def test_a_model_folder_that_differs_is_named(files, fault):
    here = Seen(models={"/m": {"config.json": 700, "model.safetensors": 12}})
    (found,) = differences(here, Seen(models={"/m": files}))
    assert found.startswith(f"model folder /m: {fault}")


def test_a_model_folder_that_is_not_there_is_no_such_folder(tmp_path):
    nowhere = str(tmp_path / "nowhere")
    assert look(Request((nowhere,))).models == {nowhere: "No such file or directory"}


def test_a_wrong_interface_is_named_with_those_that_there_are():
    (fault,) = look(Request(interface="eht0")).faults
    assert fault.startswith("network.interface='eht0': ")
    assert "lo" in fault


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("GLOO_SOCKET_IFNAME", "eht0", True),
        ("GLOO_SOCKET_IFNAME", "lo", False),
        ("GLOO_SOCKET_IFNAME", "l", True),  # gloo takes whole names
        ("NCCL_SOCKET_IFNAME", "eht", True),
        ("NCCL_SOCKET_IFNAME", "eht,l", False),  # NCCL takes prefixes
        ("NCCL_SOCKET_IFNAME", "=l", True),
        ("NCCL_SOCKET_IFNAME", "=lo", False),
        ("NCCL_SOCKET_IFNAME", "^eht", False),
        ("NCCL_SOCKET_IFNAME", "", False),
    ],
)
def test_a_wrong_interface_of_the_environment_is_named(variable, value, fault, monkeypatch):
    monkeypatch.setenv(variable, value)
    faults = look(Request()).faults
    assert [text.startswith(f"{variable}={value}: no such interface") for text in faults] == (
        [True] if fault else []
    )
    assert look(Request(interface="lo")).faults == []  # the recipe's counts
    assert look(Request(connects=False)).faults == []  # a driver without ranks or engines


def test_a_token_that_is_not_seen_is_a_folder_that_is_not_shared(tmp_path):
    home = Home(str(tmp_path))
    token, _ = home.open(NetworkConfig(), "127.0.0.1")
    assert look(Request(token=token)).faults == []
    home.close()
    (fault,) = look(Request(token=token, patience_s=0.3)).faults
    assert fault.startswith(f"does not see what rank 0's node wrote into the run folder {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_rank_0_is_reached_while_its_node_is_looked_at():
    home = Home(None)
    token, address = home.open(NetworkConfig(interface="lo"), "192.0.2.1")
    assert token is None
    assert address[0] == "127.0.0.1"
    assert look(Request(rank_0=address)).faults == []
    home.close()
    (fault,) = look(Request(rank_0=address)).faults
    assert fault.startswith(f"cannot reach rank 0 at 127.0.0.1:{address[1]} (network.address,")


def test_an_address_of_the_recipe_is_used_as_it_is(monkeypatch):
    monkeypatch.setattr(nodes, "CONNECT_S", 1.0)
    home = Home(None)
    _, address = home.open(NetworkConfig(address="no.such.host.invalid"), "127.0.0.1")
    home.close()
    (fault,) = look(Request(rank_0=address)).faults
    assert "no.such.host.invalid" in fault


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=rf"network\.port={port}: Address already in use"):
            Home(None).open(NetworkConfig(port=port), "127.0.0.1")


def test_a_run_folder_that_rank_0_cannot_write_into_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot write into the run folder .*nowhere"):
        Home(str(tmp_path / "nowhere")).open(NetworkConfig(), "127.0.0.1")


def test_the_port_can_be_used_at_once_by_rank_0():
    home = Home(None)
    _, (host, port) = home.open(NetworkConfig(), "127.0.0.1")
    look(Request(rank_0=(host, port)))
    home.close()
    with socket.socket() as rank_0:
        rank_0.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rank_0.bind(("", port))
