"""How tool images get from a rollout worker to whoever needs them: past the driver.

A worker's call has one more return value for each trajectory of its answer: the pixels that its
tools showed. Ray gives return values to the caller. So the driver owns these objects without ever
holding them: they lie in the object store of the worker's node, outlive the worker's process, and
are freed when the driver drops the last trajectory that refers to them. (An object that a worker
puts there itself would be lost with its process: Ray 2.56 removed `ray.put(_owner=...)`.)

    worker    rollout -> group                        pixels in its observations
    actor     `HandsOver` -> group, pixels of each    `StoredImage` without reference
    pool      `with_references`                       `StoredImage` with reference
    reader    `rollout_workers.images.fetched`        pixels, on the node that needs them

A return value costs the driver some microseconds. Values of less than 100 kB come in the answer's
own message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rollout_workers.images import Pixels, StoredImage, ToolImage, digest_of, image_size
from rollout_workers.settings import ForkRequest
from rollout_workers.trajectory import (
    Group,
    ObservationSegment,
    Question,
    Resample,
    Segment,
    Trajectory,
)

if TYPE_CHECKING:
    from ray import ObjectRef

LOOK_S = 5.0
"""Seconds in which Ray must say that an object is lost."""

Objects = tuple[Pixels, ...]
"""The images of one trajectory, as they lie in the object store."""


class HandsOver:
    """The two calls of a rollout worker that answer with trajectories, as its actor has them."""

    async def rollout(
        self, question: Question, n: int, step: int, **options: Any
    ) -> tuple[object, *tuple[Objects, ...]]:
        """Return a group, and the images of each of its n rollouts; see `RolloutWorker.rollout`."""
        group = await super().rollout(question, n, step, **options)  # type: ignore[misc]
        # A worker may answer garbage, which the pool finds out.
        if not isinstance(group, Group):
            return group, *_nothing(n)
        rollouts, objects = await asyncio.to_thread(_apart, group.rollouts, n)
        return replace(group, rollouts=rollouts), *objects

    async def fork(
        self, question: Question, source: Trajectory, request: ForkRequest, step: int
    ) -> tuple[Resample, *tuple[Objects, ...]]:
        """Return a resample, and the images of its continuations; see `RolloutWorker.fork`."""
        resample = await super().fork(question, source, request, step)  # type: ignore[misc]
        continuations, objects = await asyncio.to_thread(_apart, resample.continuations, request.k)
        return replace(resample, continuations=continuations), *objects


def actor_of(worker_class: type) -> type:
    """Return the class of a rollout worker's actor: the worker, handing images over."""
    return type(worker_class.__name__, (HandsOver, worker_class), {})


def with_references(
    trajectories: Sequence[Trajectory], references: Sequence[ObjectRef[Objects]]
) -> tuple[Trajectory, ...]:
    """Return the trajectories of an answer with the references that their images lack.

    Args:
        trajectories: of an answer.
        references: the answer's further return values, one for each trajectory.
    """
    # A fork whose continuations agree has none.
    pairs = zip(trajectories, references, strict=False)
    return tuple(_with_reference(trajectory, reference) for trajectory, reference in pairs)


def have_their_images(groups: Sequence[Group]) -> list[bool]:
    """Return of each group whether its tool images can still be fetched. For the driver.

    They cannot if the only node that kept them was lost. A group whose images are pixels has them.
    """
    needed = [_references(group) for group in groups]
    lost = _lost(set().union(*needed))
    return [references.isdisjoint(lost) for references in needed]


def with_images(trajectory: Trajectory, change: Callable[[ToolImage], ToolImage]) -> Trajectory:
    """Return a trajectory whose tool images are changed, in their order."""
    if not trajectory.images:
        return trajectory
    segments: list[Segment] = []
    for segment in trajectory.segments:
        if isinstance(segment, ObservationSegment) and segment.images:
            segment = replace(segment, images=tuple(change(image) for image in segment.images))
        segments.append(segment)
    return replace(trajectory, segments=tuple(segments))


def _references(group: Group) -> set[ObjectRef[Objects]]:
    trajectories = list(group.rollouts)
    for resample in group.resamples:
        trajectories += resample.continuations
    found = set()
    for trajectory in trajectories:
        for image in trajectory.images:
            if isinstance(image, StoredImage) and image.objects is not None:
                found.add(image.objects)
    return found


def _lost(references: set[ObjectRef[Objects]]) -> set[ObjectRef[Objects]]:
    """Return the objects that are gone with a node."""
    if not references:
        return set()
    import ray
    from ray.experimental import get_local_object_locations

    if all(node["Alive"] for node in ray.nodes()):
        return set()
    here = ray.get_runtime_context().get_node_id()
    # The driver owns them, so it knows where they lie, without a message.
    places = get_local_object_locations(list(references))
    lost = set()
    for reference in references:
        if set(places[reference]["node_ids"]) - {here}:
            continue
        # In place of a lost object Ray puts an error on this node.
        try:
            ray.get(reference, timeout=LOOK_S)
        except ray.exceptions.RayError:
            lost.add(reference)
    return lost


def _apart(
    trajectories: Sequence[Trajectory], count: int
) -> tuple[tuple[Trajectory, ...], list[Objects]]:
    """Take the pixels out of trajectories.

    Args:
        trajectories: whose observations have pixels. Images of a fork's prefix are stored already.
        count: of return values; a garbled answer may have another number of trajectories.

    Returns:
        The trajectories, and `count` tuples of pixels.
    """
    changed: list[Trajectory] = []
    objects: list[Objects] = []
    for trajectory in trajectories[:count]:
        pixels: list[Pixels] = []

        def take(image: ToolImage, pixels: list[Pixels] = pixels) -> ToolImage:
            if isinstance(image, StoredImage):
                return image
            pixels.append(image)
            # 3 ms for 1,024 x 1,024 pixels, and nobody has to hash them again.
            return StoredImage(digest_of(image), *image_size(image), place=len(pixels) - 1)

        changed.append(with_images(trajectory, take))
        objects.append(tuple(pixels))
    missing = _nothing(count - len(objects))
    return (*changed, *trajectories[count:]), objects + missing


def _nothing(count: int) -> list[Objects]:
    return [()] * count


def _with_reference(trajectory: Trajectory, reference: ObjectRef[Objects]) -> Trajectory:
    def refer(image: ToolImage) -> ToolImage:
        if isinstance(image, StoredImage) and image.objects is None:
            return replace(image, objects=reference)
        return image

    return with_images(trajectory, refer)
