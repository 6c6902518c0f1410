"""Plans realised by Ray, on two nodes whose GPUs are only said to be there."""

import os
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.placement import Parts, check_fits, reserve, reserved
from axpo.placement.reserve import ray_cluster

pytestmark = pytest.mark.engine

ONE_GPU = "deploy/recipes/qwen3-vl-2b-thinking.yaml"
ONE_NODE = "deploy/recipes/qwen3-vl-8b-thinking.yaml"
TWO_NODES = "deploy/recipes/qwen3-vl-8b-thinking-two-nodes.yaml"
PAIRS = ["rollout.engine.tensor_parallel_size=2", "rollout.gpus_per_worker=2"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.shutdown()
    small = {"object_store_memory": 100 * 2**20}
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, **small},
    )
    for _ in range(2):
        made.add_node(num_cpus=80, num_gpus=8, **small)
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    made.shutdown()


def look(folder, count):
    """Return a process's node and devices, once all processes are there."""
    (Path(folder) / str(os.getpid())).write_text("")
    until = time.monotonic() + 60
    while len(os.listdir(folder)) < count:
        assert time.monotonic() < until
        time.sleep(0.05)
    return ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES")


def seen(recipe, folder, *changes, parts=Parts()):
    """Start a process at each place of a recipe; return the nodes and devices of each kind."""
    probe = ray.remote(max_calls=0)(look)  # the processes are used again
    folder.mkdir()
    with reserved(load_recipe(recipe, changes), parts) as placed:
        places = [*placed.ranks.options, *placed.engines.options]
        calls = [probe.options(**one).remote(str(folder), len(places)) for one in places]
        answers = ray.get(calls, timeout=120)
    count = len(placed.ranks.options)
    return placed.plan, answers[:count], answers[count:]


def devices(answers):
    return [found for _, found in answers]


def nodes(answers):
    return {node for node, _ in answers}


def test_a_rank_and_an_engine_see_the_same_gpu(tmp_path):
    plan, ranks, engines = seen(ONE_GPU, tmp_path / "a")
    assert ranks == engines
    assert len(ranks) == 1
    assert nodes(ranks) == {plan.nodes[0].id}
    assert devices(ranks)[0].isdigit()


@pytest.mark.slow
def test_eight_ranks_and_engines_share_eight_gpus_two_by_two(tmp_path):
    _, ranks, engines = seen(ONE_NODE, tmp_path / "a")
    assert ranks == engines
    assert sorted(devices(ranks)) == list("01234567")
    assert len(nodes(ranks)) == 1


def test_four_ranks_and_four_engines_have_eight_gpus_of_one_node(tmp_path):
    _, ranks, engines = seen(TWO_NODES, tmp_path / "a", "learner.ranks=4", "rollout.workers=4")
    assert sorted(devices(ranks) + devices(engines)) == list("01234567")
    assert len(nodes(ranks + engines)) == 1


def test_ranks_and_engines_have_a_node_each(tmp_path):
    plan, ranks, engines = seen(TWO_NODES, tmp_path / "a")
    assert sorted(devices(ranks)) == sorted(devices(engines)) == list("01234567")
    assert [*nodes(ranks), *nodes(engines)] == [node.id for node in plan.nodes]


def test_an_engine_of_two_processes_sees_two_gpus(tmp_path):
    _, ranks, engines = seen(
        TWO_NODES, tmp_path / "a", *PAIRS, "rollout.workers=2", "learner.ranks=4"
    )
    pairs = [found.split(",") for found in devices(engines)]
    assert [len(pair) for pair in pairs] == [2, 2]
    assert sorted(devices(ranks) + pairs[0] + pairs[1]) == list("01234567")


def test_a_colocated_engine_of_two_processes_sees_the_gpus_of_its_ranks(tmp_path):
    _, ranks, engines = seen(
        ONE_NODE, tmp_path / "a", *PAIRS, "rollout.workers=2", "learner.ranks=4"
    )
    one_by_one = devices(ranks)
    assert len(set(one_by_one)) == 4
    assert devices(engines) == [",".join(one_by_one[:2]), ",".join(one_by_one[2:])]


def test_places_are_free_again_and_tool_servers_stand_where_the_plan_says(tmp_path):
    recipe = load_recipe(ONE_NODE, ["tools.servers=3"])
    for _ in range(2):
        with reserved(recipe) as placed:
            on = [options["scheduling_strategy"].node_id for options in placed.servers]
            assert on == [placed.plan.node(seat).id for seat in placed.plan.of("tool server")]


def test_the_interface_reaches_the_ranks_and_engines_by_their_environment():
    recipe = load_recipe(TWO_NODES, ["network.interface=eth9"])
    with reserved(recipe) as placed:
        for options in (*placed.ranks.options, *placed.engines.options):
            assert options["runtime_env"]["env_vars"] == {
                "NCCL_SOCKET_IFNAME": "=eth9",
                "GLOO_SOCKET_IFNAME": "eth9",
            }


def test_more_gpus_than_the_cluster_has_are_refused_at_once():
    recipe = load_recipe(TWO_NODES, ["learner.ranks=9"])
    with pytest.raises(AxpoError, match="need 17 GPUs; the cluster has 16"):
        check_fits(recipe, Parts())
    check_fits(recipe, Parts(workers=False))


def test_a_cluster_in_use_is_waited_for_and_then_refused(monkeypatch):
    monkeypatch.setattr(reserve, "PLACEMENT_S", 1.0)
    recipe = load_recipe(TWO_NODES)
    refused = pytest.raises(AxpoError, match=r"the Ray cluster is in use.*within 1 s")
    with reserved(recipe), refused, reserved(recipe):
        raise AssertionError
    with reserved(recipe):  # what the first one held is free a moment later
        pass


def test_raylets_of_one_machine_have_names_of_their_own():
    names = [node.name for node in ray_cluster().nodes]
    assert len(set(names)) == 3
    assert all("/" in name for name in names)
