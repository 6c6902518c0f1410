"""The nodes of a cluster: what a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One machine, or one pod: what its raylet offers."""

    name: str  # for people: its address
    cpus: float
    gpus: int
    id: str = ""  # Ray's; empty in a cluster that is only thought of


@dataclass(frozen=True)
class Cluster:
    """All nodes, in a fixed order."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Return the CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Return the GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def describe(self) -> str:
        """Return what each node has, in one line."""
        sizes: dict[str, int] = {}
        for node in self.nodes:
            size = f"{_count(node.gpus, 'GPU')} and {_count(node.cpus, 'CPU')}"
            sizes[size] = sizes.get(size, 0) + 1
        return ", ".join(f"{_count(count, 'node')} of {size}" for size, count in sizes.items())


def uniform(nodes: int, gpus: int, cpus: float) -> Cluster:
    """Return a cluster of equal nodes."""
    return Cluster(tuple(Node(f"node {i + 1}", cpus, gpus) for i in range(nodes)))


def _count(count: float, what: str) -> str:
    return f"{count:g} {what}" if count == 1 else f"{count:g} {what}s"
