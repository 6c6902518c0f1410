"""Ask every node of a plan what it has, and refuse the run if one of them cannot take part."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.placement.cluster import Node
from axpo.placement.nodes import (
    PACKAGES,
    SHARED_S,
    TOOL_PACKAGES,
    Home,
    Request,
    Seen,
    differences,
    look,
)
from axpo.placement.plan import Plan

DEADLINE_S = 45.0
"""Seconds for a node to start a process and answer, first that of rank 0, then all of them."""


def inspect_nodes(plan: Plan, recipe: Recipe, models: Sequence[str], run: str | None) -> None:
    """Look at every node that will have a rank, an engine or a tool server.

    Args:
        plan: where they will stand.
        recipe: their settings.
        models: folders that they will read.
        run: the folder that the ranks will write checkpoints into; None: they will not.

    Raises:
        AxpoError: a line for each node that cannot take part, with the cause.
    """
    nodes = [node for node in plan.nodes if node in _working(plan)]
    others = [node for node in plan.nodes if node not in nodes]
    ranks = plan.of("rank")
    driver = ray.get_runtime_context().get_node_id()
    network = recipe.network
    if {node.id for node in plan.nodes} == {driver} and network.port is None:
        # Nothing can differ, except for the name of the interface.
        _refuse({plan.nodes[0].name: look(Request(interface=network.interface)).faults})
        return
    folder = None if run is None else os.path.abspath(run)
    paths = tuple(os.path.abspath(model) for model in models)
    with contextlib.ExitStack() as stack:
        token: str | None = None
        rank_0: tuple[str, int] | None = None
        if ranks:
            token, rank_0 = stack.enter_context(_home(plan.node(ranks[0]), recipe, folder))
        asked = Request(paths, token=token, patience_s=SHARED_S)
        calls = _asked(nodes, replace(asked, interface=network.interface, rank_0=rank_0))
        of_tools = _asked(others, Request(connects=False))
        here = look(replace(asked, connects=False))
        until = time.monotonic() + DEADLINE_S
        faults = _answers(calls, here, until) | _answers(of_tools, here, until, TOOL_PACKAGES)
    _refuse({"the driver": list(here.faults)} | faults)


def _working(plan: Plan) -> set[Node]:
    return {plan.node(seat) for seat in plan.seats if seat.role != "tool server"}


def _refuse(faults: dict[str, Any]) -> None:
    lines = [f"{name}: {fault}" for name, found in faults.items() for fault in found]
    if lines:
        raise AxpoError("\n".join(lines))


@contextmanager
def _home(
    node: Node, recipe: Recipe, folder: str | None
) -> Iterator[tuple[str | None, tuple[str, int]]]:
    """Have the node of rank 0 write the token and listen, during a block."""
    home = ray.remote(Home).options(num_cpus=0, scheduling_strategy=_on(node)).remote(folder)
    try:
        yield _get(node, home.open.remote(recipe.network, _host(node)))
    finally:
        with contextlib.suppress(RayError, GetTimeoutError):
            ray.get(home.close.remote(), timeout=5)
        ray.kill(home)


def _asked(nodes: Sequence[Node], request: Request) -> dict[Node, Any]:
    """Let every node look; return what will be their answers."""
    task = ray.remote(look)
    return {
        node: task.options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node)).remote(request)
        for node in nodes
    }


def _answers(
    calls: dict[Node, Any], here: Seen, until: float, packages: Sequence[str] = PACKAGES
) -> dict[str, list[str]]:
    """Return what is wrong with each node, compared with the driver's."""
    faults = {}
    for node, call in calls.items():
        try:
            seen = _get(node, call, max(1.0, until - time.monotonic()))
        except AxpoError as error:
            faults[node.name] = [str(error).removeprefix(f"{node.name}: ")]
        else:
            faults[node.name] = differences(here, seen, packages)
    return faults


def _get(node: Node, call: Any, seconds: float = DEADLINE_S) -> Any:
    """Return what a node answers; raise AxpoError with the cause if it does not."""
    try:
        return ray.get(call, timeout=seconds)
    except GetTimeoutError as error:
        # A node's own timeout is a RayTaskError too, and says more.
        reason = f"started no process within {seconds:.0f} s: is AXPO's environment there?"
        raise AxpoError(f"{node.name}: {reason}") from error
    except RayError as error:
        raise AxpoError(f"{node.name}: {_cause(error)}") from error


def _cause(error: RayError) -> str:
    """Return the line of a Ray error that says what happened on the node."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, OSError):
        return str(error.cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "ModuleNotFoundError" in line or "No module named" in line:
            return f"lacks AXPO's environment ({line})"
    return lines[-1] if lines else type(error).__name__


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


def _host(node: Node) -> str:
    """Return a node's address in Ray."""
    for alive in ray.nodes():
        if alive["NodeID"] == node.id:
            return str(alive["NodeManagerAddress"])
    raise AxpoError(f"{node.name}: the node has left the cluster")
