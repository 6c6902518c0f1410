"""Draw the scenes of `small_digit`: small framed digits in a photograph."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from axpo.tasks.embedded.pictures import COLOURS, Frame, Span, Split, handwriting, paste, photograph
from rollout_workers.trajectory import Pixels


@dataclass(frozen=True)
class Layout:
    """How a scene is laid out; sizes in pixels."""

    scene: int
    digit: int
    border: int
    grid: int | None  # frames lie in the cells of a grid with so many a side; None: anywhere

    @property
    def frame(self) -> int:
        """Return the side of a frame, with its border."""
        return self.digit + 2 * self.border


@dataclass(frozen=True)
class Scene:
    """A picture and the frames in it."""

    image: Pixels
    frames: tuple[Frame, ...]


def draw_scene(layout: Layout, count: Span, rng: random.Random, split: Split) -> Scene:
    """Draw a crop of a photograph with framed digits in it, none touching another.

    Args:
        layout: sizes.
        count: fewest and most frames.
        rng: what everything random is drawn from.
        split: whose digits the frames show.
    """
    canvas = photograph(layout.scene, rng)
    frames: list[Frame] = []
    colours = rng.sample(sorted(COLOURS), rng.randint(*count))
    while len(frames) < len(colours):
        # A place too near to another frame is drawn again.
        x, y = _draw_place(layout, rng), _draw_place(layout, rng)
        if not all(_apart(frame, x, y) for frame in frames):
            continue
        written = handwriting(split, rng)
        colour = colours[len(frames)]
        frame = Frame(colour, written.digit, x, y, layout.frame, layout.border)
        paste(canvas, frame, written.ink)
        frames.append(frame)
    return Scene(np.asarray(canvas), tuple(frames))


def draw_background(layout: Layout, rng: random.Random) -> Pixels:
    """Draw a scene without frames."""
    return draw_scene(layout, (0, 0), rng, "train").image


def by_colour(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames in the order of their colours' names."""
    return sorted(frames, key=lambda frame: frame.colour)


def _draw_place(layout: Layout, rng: random.Random) -> int:
    """Draw the left or the top of a frame."""
    if layout.grid is None:
        return rng.randint(4, layout.scene - layout.frame - 4)
    cell = layout.scene // layout.grid
    start = cell * rng.randrange(layout.grid)
    return start + rng.randint(0, cell - layout.frame)


def _apart(frame: Frame, x: int, y: int) -> bool:
    """Return whether a frame of the same size at (x, y) keeps its distance from this one."""
    distance = max(abs(x - frame.left), abs(y - frame.top))
    return distance > frame.side * 1.4
