"""Draw the scenes of `small_digit`: small framed digits in a photograph."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from axpo.tasks.embedded.pictures import COLOURS, Frame, Split, handwriting, paste, photograph
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


def draw_scene(layout: Layout, count: tuple[int, int], rng: random.Random, split: Split) -> Scene:
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


def _draw_place(layout: Layout, rng: random.Random) -> int:
    """Draw where a frame begins on one axis."""
    if layout.grid is None:
        return rng.randint(4, layout.scene - layout.frame - 4)
    cell = layout.scene // layout.grid
    return cell * rng.randrange(layout.grid) + rng.randint(0, cell - layout.frame)


def _apart(frame: Frame, x: int, y: int) -> bool:
    """Return whether a frame of the same size at (x, y) keeps its distance from this one."""
    return max(abs(x - frame.left), abs(y - frame.top)) > frame.side * 1.4
