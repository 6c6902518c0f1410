"""Realise a plan on Ray: one placement group, whose bundles stand on the nodes of the plan.

A rank or an engine takes its share of the GPUs of its bundle, and Ray shows it these devices only.
Two that share a bundle of one GPU see the same device. An engine with more GPUs than its first
bundle (colocated, tensor parallel) is told the devices of all its bundles.

Tool servers are not in the group: they start on their node of the plan, and Ray may start them
again elsewhere if that node is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.placement.cluster import Cluster, Node
from axpo.placement.plan import Plan, make_plan
from axpo.placement.units import Parts, Seat
from rollout_workers.places import Options, Places, place

PLACEMENT_S = 60.0
"""Seconds to wait for nodes that others use at the moment."""
_NODE_LABEL = "ray.io/node-id"
_OWN_DEVICES = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""Tells Ray to leave CUDA_VISIBLE_DEVICES as it is."""
_DEVICES_S = 60.0


@dataclass(frozen=True)
class Placed:
    """A plan that Ray has reserved."""

    plan: Plan
    ranks: Places
    engines: Places
    servers: tuple[Options, ...]


def check_fits(recipe: Recipe, parts: Parts) -> None:
    """Raise AxpoError if the Ray cluster cannot hold the recipe, however free it is."""
    make_plan(recipe, ray_cluster(), parts)


@contextmanager
def reserved(recipe: Recipe, parts: Parts = Parts()) -> Iterator[Placed]:
    """Reserve places for the actors of a recipe during a block.

    Raises:
        AxpoError: the cluster cannot hold them, or is not free within `PLACEMENT_S`.
    """
    plan, group = _reserve(recipe, parts)
    try:
        yield Placed(
            plan,
            Places(tuple(_options(recipe, plan, group, seat) for seat in plan.of("rank"))),
            Places(tuple(_options(recipe, plan, group, seat) for seat in plan.of("engine"))),
            tuple(_server_options(plan, seat) for seat in plan.of("tool server")),
        )
    finally:
        remove_placement_group(group)


def ray_cluster() -> Cluster:
    """Return the nodes of the Ray cluster, with all that they have."""
    return _cluster({node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]})


def _free_cluster() -> Cluster:
    """Return the nodes of the Ray cluster, with what nobody uses."""
    return _cluster(ray._private.state.available_resources_per_node())


def _cluster(resources: dict[str, dict[str, float]]) -> Cluster:
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has, name = resources.get(node["NodeID"], {}), node["NodeManagerAddress"]
        # Several raylets on one machine have its address.
        if addresses.count(name) > 1:
            name = f"{name}/{node['NodeID'][:8]}"
        nodes.append(Node(name, has.get("CPU", 0.0), int(has.get("GPU", 0)), node["NodeID"]))
    return Cluster(tuple(nodes))


def _reserve(recipe: Recipe, parts: Parts) -> tuple[Plan, PlacementGroup]:
    """Return a plan of what is free, and its placement group."""
    check_fits(recipe, parts)
    until = time.monotonic() + PLACEMENT_S
    while True:
        try:
            plan = make_plan(recipe, _free_cluster(), parts)
            return plan, _group(plan)
        except AxpoError as error:
            # What an ended run held comes back in a moment.
            if time.monotonic() > until:
                raise AxpoError(
                    f"the Ray cluster is in use, and was not free within {PLACEMENT_S:g} s: {error}"
                ) from None
        time.sleep(0.2)


def _group(plan: Plan) -> PlacementGroup:
    """Return the placement group of a plan; raise AxpoError if another one was quicker."""
    bundles, pins = [], []
    for number in _of_group(plan):
        bundle = plan.bundles[number]
        # Ray refuses an empty bundle.
        resources: dict[str, float] = {"CPU": max(bundle.cpus, 0.001)}
        if bundle.gpus:
            resources["GPU"] = len(bundle.gpus)
        bundles.append(resources)
        pins.append({_NODE_LABEL: bundle.node.id})
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=pins)
    if not group.wait(10):
        remove_placement_group(group)
        raise AxpoError("another run took what was free")
    return group


def _of_group(plan: Plan) -> list[int]:
    """Return the bundles of ranks and engines: those of the placement group, in its order."""
    seats = [*plan.of("rank"), *plan.of("engine")]
    return sorted({bundle for seat in seats for bundle in seat.bundles})


def _options(recipe: Recipe, plan: Plan, group: PlacementGroup, seat: Seat) -> Options:
    numbers = _of_group(plan)
    own = [numbers.index(bundle) for bundle in seat.bundles]
    variables = dict(recipe.network.environment)
    if len(own) > 1:
        devices = [_devices(group, bundle, seat.gpus) for bundle in own]
        variables |= {_OWN_DEVICES: "1", "CUDA_VISIBLE_DEVICES": ",".join(devices)}
    options: dict[str, Any] = place(group, own[0], seat.cpus, seat.gpus)
    if variables:
        options["runtime_env"] = {"env_vars": variables}
    return options


def _devices(group: PlacementGroup, bundle: int, share: float) -> str:
    """Return the device that Ray shows to whoever takes a share of a bundle."""
    options = place(group, bundle, 0, share)
    call = ray.remote(_visible).options(**options).remote()
    return str(ray.get(call, timeout=_DEVICES_S))


def _visible() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


def _server_options(plan: Plan, seat: Seat) -> Options:
    on_node = NodeAffinitySchedulingStrategy(plan.node(seat).id, soft=True)
    return {"num_cpus": seat.cpus, "num_gpus": 0, "scheduling_strategy": on_node}
