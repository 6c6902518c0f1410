"""Where Ray starts the actors of one kind.

A run places all its actors together, by one plan (`axpo.placement`). A part of it that is used
alone, as in a test, reserves its own places here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

Options: TypeAlias = Mapping[str, Any]
"""Ray's options of one actor: what it takes, and where."""


@dataclass(frozen=True)
class Places:
    """One place for each actor of a kind, by index."""

    options: tuple[Options, ...]
    own: PlacementGroup | None = None  # given back with the places; None: somebody else's

    def release(self) -> None:
        """Give the places back, if nobody else does."""
        if self.own is not None:
            remove_placement_group(self.own)


@dataclass(frozen=True)
class Wanted:
    """Places for equal actors, reserved on their own."""

    field: str  # of the recipe, for the message
    count: int
    cpus: float
    gpus: float
    strategy: Literal["PACK", "SPREAD"] = "PACK"

    def reserve(self, deadline_s: float) -> Places:
        """Reserve all places or none.

        Raises:
            ValueError: they cannot be had in time; the message says what there is.
        """
        # Ray refuses an empty bundle.
        bundle = {"CPU": max(self.cpus, 0.001)}
        if self.gpus:
            bundle["GPU"] = self.gpus
        group = placement_group([bundle] * self.count, strategy=self.strategy)
        if not group.wait(deadline_s):
            remove_placement_group(group)
            raise ValueError(
                f"{self.field}={self.count} of {bundle} do not fit into Ray's "
                f"{ray.cluster_resources()}, free {ray.available_resources()}"
            )
        options = [place(group, i, self.cpus, self.gpus) for i in range(self.count)]
        return Places(tuple(options), group)


def place(group: PlacementGroup, bundle: int, cpus: float, gpus: float) -> dict[str, Any]:
    """Return the options of an actor in a bundle of a placement group."""
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=bundle
        ),
    }
