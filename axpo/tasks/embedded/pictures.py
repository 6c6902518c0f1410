"""Draw real handwritten digits in coloured frames into real photographs.

Digits are scikit-learn's UCI digits (8x8, 1,797 of them; every fifth is held out for evaluation).
Photographs are its two sample images.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from rollout_workers.trajectory import Pixels

COLOURS = {
    "red": (225, 30, 30),
    "blue": (40, 70, 235),
    "green": (20, 165, 50),
    "yellow": (240, 215, 20),
}

Split: TypeAlias = Literal["train", "test"]
Span: TypeAlias = tuple[int, int]
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in thousandths of the picture's side, as `image_zoom_in` takes them."""


@dataclass(frozen=True)
class Handwriting:
    """One handwritten digit."""

    digit: int
    ink: np.ndarray  # [8, 8] uint8


@dataclass(frozen=True)
class Frame:
    """A digit in a coloured square frame; sizes in pixels of the picture."""

    colour: str
    digit: int
    left: int
    top: int
    side: int  # with the border
    border: int

    def box(self, side: int, scene: int, shift: Span = (0, 0), step: int = 1) -> Box:
        """Return a square box around the frame that stays inside the picture.

        Args:
            side: side of the box, in thousandths of the picture.
            scene: side of the picture, in pixels.
            shift: how far the box is moved right and down, in thousandths.
            step: the box begins at multiples of this, in thousandths.
        """

        def corner(start: int, moved: int) -> int:
            centre = (start + self.side / 2) * 1000 / scene + moved
            nearest = round((centre - side / 2) / step) * step
            return int(min(max(0, nearest), 1000 - side))

        x = corner(self.left, shift[0])
        y = corner(self.top, shift[1])
        return x, y, x + side, y + side

    def inside(self, box: Box, scene: int) -> bool:
        """Return whether the whole panel (the frame without its border) lies in the box.

        Args:
            box: in thousandths of the picture.
            scene: side of the picture, in pixels.
        """
        left, top, right, bottom = (value * scene / 1000 for value in box)
        start, end = self.border, self.side - self.border
        inside_x = left <= self.left + start and right >= self.left + end
        inside_y = top <= self.top + start and bottom >= self.top + end
        return inside_x and inside_y


def photograph(side: int, rng: random.Random) -> Image.Image:
    """Return a random square of one of the photographs, scaled to `side` pixels."""
    photo = _photographs()[rng.randrange(2)]
    # The square that is cut out, in pixels of the photograph.
    cut = rng.randint(240, min(photo.size))
    left = rng.randint(0, photo.width - cut)
    top = rng.randint(0, photo.height - cut)
    square = (left, top, left + cut, top + cut)
    return photo.resize((side, side), Image.Resampling.BILINEAR, square)


def handwriting(split: Split, rng: random.Random, digit: int | None = None) -> Handwriting:
    """Return a random handwritten digit of a split, of any value or of a given one."""
    images, labels = digits(split)
    if digit is None:
        pick = rng.randrange(len(labels))
    else:
        pick = rng.choice(np.flatnonzero(labels == digit))
    return Handwriting(int(labels[pick]), images[pick])


def paste(canvas: Image.Image, frame: Frame, ink: np.ndarray) -> None:
    """Draw a frame with its digit into the picture."""
    # Pillow counts the last row and column in.
    right = frame.left + frame.side - 1
    bottom = frame.top + frame.side - 1
    rectangle = (frame.left, frame.top, right, bottom)
    ImageDraw.Draw(canvas).rectangle(rectangle, fill=COLOURS[frame.colour])
    side = frame.side - 2 * frame.border
    panel = Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC)
    inner = (frame.left + frame.border, frame.top + frame.border)
    canvas.paste(panel, inner)


def crop(image: Pixels, box: Box) -> Pixels:
    """Return the part of a square picture that lies in the box."""
    side = image.shape[0]
    left, top, right, bottom = (round(value * side / 1000) for value in box)
    return image[top:bottom, left:right]


@cache
def digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of a split; every fifth digit belongs to the test split.

    Returns:
        Images [n, 8, 8] uint8, dark ink on a light panel, and labels [n].
    """
    # A row for each digit: 64 pixels, then what it is.
    rows = np.loadtxt(_file_of_scikit_learn("data", "digits.csv.gz"), delimiter=",")
    every_fifth = np.arange(len(rows)) % 5 == 0
    chosen = rows[every_fifth if split == "test" else ~every_fifth]
    # scikit-learn's ink goes from 0 to 16, bright on dark.
    images = 255 - chosen[:, :-1].reshape(-1, 8, 8) * 15
    return images.astype(np.uint8), chosen[:, -1].astype(int)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    files = [_file_of_scikit_learn("images", name) for name in ("china.jpg", "flower.jpg")]
    return tuple(Image.open(file).convert("RGB") for file in files)


def _file_of_scikit_learn(*parts: str) -> Path:
    """Return a file of its data sets. Importing it would take 1.5 s, for SciPy's statistics."""
    spec = PathFinder.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed")
    return Path(spec.origin).parent.joinpath("datasets", *parts)
