"""Plan where the actors of a run stand: pure, from a recipe and a cluster.

Units (`axpo.placement.units`) are placed one after the other: ranks fill the nodes with most GPUs,
engines follow, and tool servers go where most CPUs are free. The same recipe and cluster give the
same plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.placement.cluster import Cluster, Node
from axpo.placement.units import EPS, Parts, Role, Seat, Unit, units_of


@dataclass(frozen=True)
class Bundle:
    """What Ray reserves in one piece, on one node."""

    node: Node
    cpus: float
    gpus: tuple[int, ...]  # counted from 0 on the node; Ray chooses which devices they are


@dataclass(frozen=True)
class Plan:
    """Where every actor of a run stands."""

    bundles: tuple[Bundle, ...]
    seats: tuple[Seat, ...]

    @property
    def nodes(self) -> list[Node]:
        """Return the nodes that have an actor, in the order of the bundles."""
        return list(dict.fromkeys(bundle.node for bundle in self.bundles))

    def of(self, role: Role) -> list[Seat]:
        """Return the seats of a role, by index."""
        return sorted((s for s in self.seats if s.role == role), key=lambda seat: seat.index)

    def node(self, seat: Seat) -> Node:
        """Return the node of a seat."""
        return self.bundles[seat.bundles[0]].node


def make_plan(recipe: Recipe, cluster: Cluster, parts: Parts = Parts()) -> Plan:
    """Place the actors of a recipe on the nodes of a cluster.

    Args:
        recipe: what is placed.
        cluster: the nodes and what they have.
        parts: which actors are started; default: all.

    Raises:
        AxpoError: they do not fit, or could not reach each other there.
    """
    _check_totals(recipe, cluster, parts)
    units = units_of(recipe, parts)
    try:
        plan = _placed(recipe, cluster, (*units.ranks, *units.engines, *units.servers))
    except AxpoError:
        # The ranks may have taken what whole engines need of a node.
        plan = _placed(recipe, cluster, (*units.engines, *units.ranks, *units.servers))
    _check_reach(recipe, plan)
    return plan


def smallest_cluster(recipe: Recipe, gpus_a_node: int = 8) -> Cluster:
    """Return the fewest nodes of at most `gpus_a_node` GPUs that hold a recipe, and no more."""
    units = list(units_of(recipe))
    size = max([gpus_a_node, *(unit.gpus for unit in units)])
    nodes: list[_Free] = []
    for unit in units:
        node = next((node for node in nodes if node.holds(unit)), None)
        if node is None:
            node = _Free(Node(f"node {len(nodes) + 1}", math.inf, size))
            nodes.append(node)
        node.take(unit)
    used = [replace(n.node, cpus=math.ceil(n.taken_cpus - EPS), gpus=n.taken_gpus) for n in nodes]
    return Cluster(tuple(used))


class _Free:
    """What is left of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.taken_cpus = 0.0
        self.taken_gpus = 0

    @property
    def cpus(self) -> float:
        return self.node.cpus - self.taken_cpus

    @property
    def gpus(self) -> int:
        return self.node.gpus - self.taken_gpus

    def holds(self, unit: Unit) -> bool:
        return unit.gpus <= self.gpus and unit.cpus <= self.cpus + EPS

    def take(self, unit: Unit) -> list[Bundle]:
        bundles = []
        for wish in unit.bundles:
            gpus = range(self.taken_gpus, self.taken_gpus + wish.gpus)
            bundles.append(Bundle(self.node, wish.cpus, tuple(gpus)))
            self.taken_gpus += wish.gpus
            self.taken_cpus += wish.cpus
        return bundles


def _placed(recipe: Recipe, cluster: Cluster, units: Iterable[Unit]) -> Plan:
    """Place the units in their order; raise AxpoError if one of them fits no node."""
    free = [_Free(node) for node in sorted(cluster.nodes, key=lambda node: -node.gpus)]
    bundles: list[Bundle] = []
    seats: list[Seat] = []
    for unit in units:
        fitting = [node for node in free if node.holds(unit)]
        if not fitting:
            raise AxpoError(_does_not_fit(unit, free))
        node = _chosen(recipe, unit, fitting)
        start = len(bundles)
        bundles += node.take(unit)
        for seat in unit.seats:
            seats.append(replace(seat, bundles=tuple(start + b for b in seat.bundles)))
    return Plan(tuple(bundles), tuple(seats))


def _chosen(recipe: Recipe, unit: Unit, fitting: Sequence[_Free]) -> _Free:
    """Return the node of a unit, of several that hold it. Of equal ones it is the first."""
    if unit.roles == {"tool server"}:
        return max(fitting, key=lambda node: node.cpus)
    if unit.roles == {"engine"} and recipe.rollout.placement == "SPREAD":
        return max(fitting, key=lambda node: (node.gpus, node.cpus))
    return fitting[0]


def _does_not_fit(unit: Unit, free: Sequence[_Free]) -> str:
    who = " and ".join(seat.name for seat in unit.seats)
    names: dict[str, list[str]] = {}
    for node in free:
        left = f"{node.gpus} GPUs and {_shown(node.cpus)} CPUs left"
        names.setdefault(left, []).append(node.node.name)
    # Of a large cluster most nodes are alike.
    lines = [
        f"{found[0]} has {left}" if len(found) == 1 else f"{len(found)} nodes have {left} each"
        for left, found in names.items()
    ]
    needed = f"{unit.gpus} GPUs and {_shown(unit.cpus)} CPUs are needed on one node"
    return f"{who}: {needed}; {', '.join(lines) or 'there is no node'}"


def _check_totals(recipe: Recipe, cluster: Cluster, parts: Parts) -> None:
    """Raise AxpoError if all nodes together have too little."""
    learner, rollout, tools = recipe.learner, recipe.rollout, recipe.tools
    units = list(units_of(recipe, parts))
    gpus = sum(unit.gpus for unit in units)
    if gpus > cluster.gpus:
        of_each = (learner.gpus_per_rank, rollout.gpus_per_worker, 0)
        asked = _asked(recipe, parts, "GPU", of_each)
        raise AxpoError(f"{asked} need {gpus} GPUs; the cluster has {cluster.gpus}")
    cpus = sum(unit.cpus for unit in units)
    if cpus > cluster.cpus + EPS:
        each = (learner.cpus_per_rank, rollout.cpus_per_worker, tools.cpus_per_server)
        asked = _asked(recipe, parts, "CPU", each)
        raise AxpoError(f"{asked} need {_shown(cpus)} CPUs; the cluster has {cluster.cpus:g}")


def _asked(recipe: Recipe, parts: Parts, what: str, each: tuple[float, float, float]) -> str:
    """Return the fields that ask for GPUs or CPUs."""
    counts = {
        f"learner.ranks={recipe.learner.ranks}": parts.learner,
        f"rollout.workers={recipe.rollout.workers}": parts.workers,
        f"tools.servers={recipe.tools.servers}": parts.workers,
    }
    fields = [
        f"{count} with {amount:g} {what}s each"
        for (count, started), amount in zip(counts.items(), each, strict=True)
        if started and amount
    ]
    return " and ".join(fields)


def _check_reach(recipe: Recipe, plan: Plan) -> None:
    """Refuse what goes through shared memory if an engine is not on the node of rank 0."""
    ranks, engines = plan.of("rank"), plan.of("engine")
    if not ranks or not engines:
        return
    home = plan.node(ranks[0])
    away = next((engine for engine in engines if plan.node(engine) != home), None)
    if away is None:
        return
    # Adapters alone go through Ray, and so do the weights that `check_sync` compares.
    if recipe.rollout.engine.weight_transfer == "shared_memory" and recipe.lora_rank is None:
        raise AxpoError(
            "rollout.engine.weight_transfer='shared_memory': does not reach over nodes, and rank 0 "
            f"is on {home.name}, {away.name} on {plan.node(away).name}; use one node, or 'nccl' "
            "with GPUs"
        )


def _shown(value: float) -> str:
    return f"{round(value, 3):g}"
