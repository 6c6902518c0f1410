"""Plans, from recipes and clusters that exist on paper only."""

import random

import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.placement import Cluster, Node, Parts, make_plan, smallest_cluster, table, uniform
from axpo.placement.table import placement_lines

DEMO = "deploy/recipes/demo.yaml"
ONE_GPU = "deploy/recipes/qwen3-vl-2b-thinking.yaml"
ONE_NODE = "deploy/recipes/qwen3-vl-8b-thinking.yaml"
TWO_NODES = "deploy/recipes/qwen3-vl-8b-thinking-two-nodes.yaml"


def plan(recipe, cluster, *overrides, parts=Parts()):
    return make_plan(load_recipe(recipe, overrides), cluster, parts)


def where(made, role):
    """Return the nodes and GPUs of a role: of each actor (node, its GPUs)."""
    seats = made.of(role)
    gpus = [[gpu for b in seat.bundles for gpu in made.bundles[b].gpus] for seat in seats]
    return [(made.node(seat).name, of) for seat, of in zip(seats, gpus, strict=True)]


def test_one_gpu_is_shared_by_a_rank_and_an_engine():
    made = plan(ONE_GPU, uniform(1, 1, 9))
    assert where(made, "rank") == where(made, "engine") == [("node 1", [0])]
    assert [seat.gpus for seat in (*made.of("rank"), *made.of("engine"))] == [0.5, 0.5]
    assert [bundle.cpus for bundle in made.bundles] == [8, 0.1]


def test_eight_gpus_are_shared_each_by_one_rank_and_one_engine():
    made = plan(ONE_NODE, uniform(1, 8, 65))
    assert where(made, "rank") == where(made, "engine") == [("node 1", [i]) for i in range(8)]


def test_four_ranks_and_four_engines_have_gpus_of_their_own():
    made = plan(TWO_NODES, uniform(1, 8, 40), "learner.ranks=4", "rollout.workers=4")
    assert where(made, "rank") == [("node 1", [i]) for i in range(4)]
    assert where(made, "engine") == [("node 1", [i]) for i in range(4, 8)]


def test_ranks_fill_one_node_and_engines_the_other():
    made = plan(TWO_NODES, uniform(2, 8, 33))
    assert where(made, "rank") == [("node 1", [i]) for i in range(8)]
    assert where(made, "engine") == [("node 2", [i]) for i in range(8)]


def test_an_engine_of_two_processes_has_two_gpus_of_one_node():
    split = ("rollout.engine.tensor_parallel_size=2", "rollout.gpus_per_worker=2")
    made = plan(TWO_NODES, uniform(2, 8, 40), *split, "rollout.workers=4")
    assert where(made, "engine") == [("node 2", [i, i + 1]) for i in (0, 2, 4, 6)]


def test_a_colocated_engine_of_two_processes_shares_its_gpus_with_two_ranks():
    split = ("rollout.engine.tensor_parallel_size=2", "rollout.gpus_per_worker=2")
    made = plan(ONE_NODE, uniform(2, 4, 40), *split, "rollout.workers=4")
    assert where(made, "engine") == [
        (node, gpus) for node in ("node 1", "node 2") for gpus in ([0, 1], [2, 3])
    ]
    assert where(made, "rank") == [
        (node, [gpu]) for node in ("node 1", "node 2") for gpu in range(4)
    ]


def test_engines_with_half_a_gpu_share_it_two_by_two():
    half = (
        "rollout.gpus_per_worker=0.5",
        "rollout.engine={gpu_memory_utilization: 0.45, weight_transfer: shared_memory}",
    )
    made = plan(TWO_NODES, uniform(1, 4, 40), *half, "rollout.workers=3", "learner.ranks=2")
    assert where(made, "engine") == [("node 1", [gpu]) for gpu in (2, 2, 3)]


def test_whole_engines_come_first_where_ranks_would_leave_them_no_node():
    split = ("rollout.engine.tensor_parallel_size=4", "rollout.gpus_per_worker=4")
    cluster = Cluster((Node("a", 64, 6), Node("b", 64, 5)))
    made = plan(TWO_NODES, cluster, *split, "rollout.workers=2", "learner.ranks=3")
    assert where(made, "engine") == [("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3])]
    assert where(made, "rank") == [("a", [4]), ("a", [5]), ("b", [4])]


def test_ranks_take_the_largest_node_and_engines_spread_if_asked():
    cluster = Cluster((Node("small", 64, 4), Node("large", 64, 8), Node("other", 64, 4)))
    spread = ("rollout.placement=SPREAD", "rollout.workers=4")
    made = plan(TWO_NODES, cluster, *spread)
    assert {node for node, _ in where(made, "rank")} == {"large"}
    assert [node for node, _ in where(made, "engine")] == ["small", "other", "small", "other"]


def test_tool_servers_go_where_most_cpus_are_free():
    made = plan(TWO_NODES, uniform(2, 8, 40), "tools.servers=2", "tools.cpus_per_server=4")
    assert where(made, "tool server") == [("node 1", []), ("node 2", [])]


def test_without_a_learner_colocated_engines_have_their_gpus_alone():
    made = plan(ONE_NODE, uniform(1, 8, 33), parts=Parts(learner=False))
    assert [seat.gpus for seat in made.of("engine")] == [1] * 8
    assert made.of("rank") == []


def test_the_demo_needs_no_gpu():
    made = plan(DEMO, uniform(1, 0, 2))
    assert all(bundle.gpus == () for bundle in made.bundles)
    assert [seat.name for seat in made.seats] == ["rank 0", "rank 1", "engine 0", "tool server 0"]


def test_the_table_has_a_line_for_every_gpu():
    assert table(plan(ONE_GPU, uniform(1, 1, 9))) == [
        "node    GPU  who",
        "node 1    0  rank 0, engine 0",
        "node 1    -  tool server 0",
    ]


def test_without_nodes_the_table_is_of_what_the_recipe_needs():
    assert placement_lines(load_recipe(ONE_GPU))[0] == "needs 1 node of 1 GPU and 9 CPUs:"
    assert smallest_cluster(load_recipe(TWO_NODES)) == Cluster(
        (Node("node 1", 33, 8), Node("node 2", 32, 8))
    )


@pytest.mark.parametrize(
    ("recipe", "nodes", "message"),
    [
        (
            ONE_NODE,
            (1, 4, 99),
            "learner.ranks=8 with 1 GPUs each and rollout.workers=8 with 1 GPUs each",
        ),
        (ONE_NODE, (1, 7, 99), "need 8 GPUs; the cluster has 7"),
        (TWO_NODES, (1, 8, 99), "need 16 GPUs; the cluster has 8"),
        (ONE_NODE, (1, 8, 64), "need 64.1 CPUs; the cluster has 64"),
        (DEMO, (1, 0, 1), "learner.ranks=2 with 0.4 CPUs each and rollout.workers=1 with 0.4 CPUs"),
        (ONE_NODE, (8, 1, 8.05), "tool server 0: 0 GPUs and 0.1 CPUs are needed on one node"),
        (ONE_NODE, (16, 8, 4.1), "engine 0 and rank 0: 1 GPUs and 8 CPUs are needed on one node"),
    ],
)
def test_too_small_a_cluster_is_refused_with_what_is_missing(recipe, nodes, message):
    with pytest.raises(AxpoError) as caught:
        plan(recipe, uniform(*nodes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_over_two_nodes_is_refused():
    split = ("rollout.engine.tensor_parallel_size=4", "rollout.gpus_per_worker=4")
    with pytest.raises(AxpoError, match="engine 0: 4 GPUs and 4 CPUs are needed on one node; "):
        plan(TWO_NODES, uniform(4, 2, 40), *split, "rollout.workers=1", "learner.ranks=2")


def test_shared_memory_over_two_nodes_is_refused():
    shared = "rollout.engine.weight_transfer=shared_memory"
    with pytest.raises(AxpoError) as caught:
        plan(TWO_NODES, uniform(2, 8, 40), shared)
    assert str(caught.value).startswith("rollout.engine.weight_transfer='shared_memory': does not")
    assert "rank 0 is on node 1, engine 0 on node 2" in str(caught.value)
    # On a CPU, too; and on one node it works.
    with pytest.raises(AxpoError, match="does not reach over nodes"):
        plan(DEMO, uniform(3, 0, 0.5))
    plan(TWO_NODES, uniform(1, 16, 80), shared)


def test_what_goes_through_ray_reaches_over_two_nodes():
    plan(TWO_NODES, uniform(2, 8, 40), "learner.check_sync=true")
    alone = ["learner.lora={sync: adapters}", "rollout.engine.weight_transfer=shared_memory"]
    plan(TWO_NODES, uniform(2, 8, 40), *alone)


def test_a_plan_takes_no_gpu_twice_and_no_more_cpus_than_there_are():
    random.seed(7)
    for _ in range(200):
        tp, workers = random.choice([1, 1, 2, 4]), random.randint(1, 6)
        settings = [
            f"rollout.engine.tensor_parallel_size={tp}",
            f"rollout.gpus_per_worker={tp}",
            f"rollout.workers={workers}",
            f"learner.ranks={tp * workers}",
            f"tools.servers={random.randint(1, 5)}",
        ]
        recipe = load_recipe(random.choice([ONE_NODE, TWO_NODES]), settings)
        made = make_plan(recipe, smallest_cluster(recipe, random.choice([4, 8])))
        taken = [(bundle.node, gpu) for bundle in made.bundles for gpu in bundle.gpus]
        assert len(taken) == len(set(taken))
        for node in made.nodes:
            bundles = [bundle for bundle in made.bundles if bundle.node == node]
            assert sum(bundle.cpus for bundle in bundles) <= node.cpus + 1e-6
            assert all(gpu < node.gpus for bundle in bundles for gpu in bundle.gpus)
        for seat in made.seats:
            assert len({made.bundles[b].node for b in seat.bundles}) == 1
