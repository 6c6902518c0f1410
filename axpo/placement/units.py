"""What of a recipe must stand on one node together.

a rank                          1 GPU
an engine                       `tensor_parallel_size` GPUs
engines that share a GPU        1 GPU, if `gpus_per_worker` is below 1
colocated: an engine and its    `tensor_parallel_size` GPUs, on each of them one rank and one
  ranks                         process of the engine
a tool server, and on a CPU a   CPUs only
  rank or an engine
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from axpo.config import Recipe

Role: TypeAlias = Literal["rank", "engine", "tool server"]

EPS = 1e-6
"""Shares of CPUs are added up: 0.1 + 0.2 is not 0.3."""


@dataclass(frozen=True)
class Parts:
    """Which actors of a recipe are started."""

    learner: bool = True
    workers: bool = True  # and tool servers


@dataclass(frozen=True)
class Seat:
    """One actor and the bundles in which it stands."""

    role: Role
    index: int
    cpus: float
    gpus: float  # what it takes of Ray's GPUs in its first bundle
    bundles: tuple[int, ...]  # it sees the GPUs of all of them

    @property
    def name(self) -> str:
        """Return who sits here, for people."""
        return f"{self.role} {self.index}"


@dataclass(frozen=True)
class Wish:
    """A bundle that is wanted."""

    cpus: float
    gpus: int = 0


@dataclass(frozen=True)
class Unit:
    """Bundles that are wanted on one node; the seats count them from 0."""

    bundles: tuple[Wish, ...]
    seats: tuple[Seat, ...]

    @property
    def gpus(self) -> int:
        """Return the GPUs of all bundles."""
        return sum(wish.gpus for wish in self.bundles)

    @property
    def cpus(self) -> float:
        """Return the CPUs of all bundles."""
        return sum(wish.cpus for wish in self.bundles)

    @property
    def roles(self) -> set[Role]:
        """Return who sits here."""
        return {seat.role for seat in self.seats}


@dataclass(frozen=True)
class Units:
    """All units of a recipe. Colocated engines are among the ranks."""

    ranks: tuple[Unit, ...]
    engines: tuple[Unit, ...]
    servers: tuple[Unit, ...]

    def __iter__(self) -> Iterator[Unit]:
        yield from (*self.ranks, *self.engines, *self.servers)


def units_of(recipe: Recipe, parts: Parts = Parts()) -> Units:
    """Return what must be placed of a recipe."""
    servers = _servers(recipe) if parts.workers else ()
    if parts == Parts() and recipe.rollout.colocated and recipe.learner.gpus_per_rank:
        return Units(tuple(_colocated(recipe)), (), tuple(servers))
    ranks = _ranks(recipe) if parts.learner else ()
    engines = _engines(recipe) if parts.workers else ()
    return Units(tuple(ranks), tuple(engines), tuple(servers))


def _ranks(recipe: Recipe) -> Iterator[Unit]:
    cpus, gpus = recipe.learner.cpus_per_rank, recipe.learner.gpus_per_rank
    for i in range(recipe.learner.ranks):
        yield Unit((Wish(cpus, gpus),), (Seat("rank", i, cpus, gpus, (0,)),))


def _engines(recipe: Recipe) -> Iterator[Unit]:
    rollout = recipe.rollout
    cpus, share = rollout.cpus_per_worker, rollout.gpus_per_worker
    if 0 < share < 1:
        gpus, together = 1, int(1 / share + EPS)
    else:
        gpus, together = int(share), 1
    for first in range(0, rollout.workers, together):
        indices = range(first, min(first + together, rollout.workers))
        seats = tuple(Seat("engine", i, cpus, share, (0,)) for i in indices)
        yield Unit((Wish(cpus * len(seats), gpus),), seats)


def _colocated(recipe: Recipe) -> Iterator[Unit]:
    learner, rollout = recipe.learner, recipe.rollout
    processes = rollout.engine.tensor_parallel_size
    # That two share a GPU is all that the shares say. How much memory each takes is set elsewhere.
    share = rollout.gpus_per_worker if rollout.gpus_per_worker < 1 else 0.5
    spans = tuple(range(processes))
    for i in range(rollout.workers):
        engine = Seat("engine", i, rollout.cpus_per_worker, share, spans)
        ranks = [
            Seat("rank", i * processes + b, learner.cpus_per_rank, 1 - share, (b,)) for b in spans
        ]
        # The engine's CPUs are in its first bundle.
        first = Wish(learner.cpus_per_rank + rollout.cpus_per_worker, 1)
        others = (Wish(learner.cpus_per_rank, 1),) * (processes - 1)
        yield Unit((first, *others), (engine, *ranks))


def _servers(recipe: Recipe) -> Iterator[Unit]:
    cpus = recipe.tools.cpus_per_server
    for i in range(recipe.tools.servers):
        yield Unit((Wish(cpus),), (Seat("tool server", i, cpus, 0, (0,)),))
